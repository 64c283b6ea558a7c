"""The fake Hub's data: repositories, their commits and files."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf", ".parquet", ".arrow", ".zip", ".gz")
LFS_ABOVE_BYTES = 10_000_000
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs\n" for suffix in LFS_SUFFIXES)


class HubError(Exception):
    """An error response, with the headers that the client maps to its exceptions."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict | None = None):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **(headers or {})}
        if code:
            self.headers["X-Error-Code"] = code


@dataclass(frozen=True)
class File:
    """One file of a commit; `lfs` is the SHA-256 of a file in large file storage."""

    oid: str
    size: int
    lfs: str | None = None
    xet: str | None = None

    def as_json(self, path: str) -> dict:
        """Return this file as the tree and paths-info routes show it."""
        info = {"type": "file", "path": path, "oid": self.oid, "size": self.size}
        if self.lfs:
            info["lfs"] = {"oid": self.lfs, "size": self.size, "pointerSize": 130}
        if self.xet:
            info["xetHash"] = self.xet
        return info


Tree = dict[str, File]


@dataclass(frozen=True)
class Commit:
    """A snapshot of all files of a repository, and its parent commit."""

    id: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    tree: Tree


@dataclass
class Repo:
    """A model or dataset repository: commits, branches and tags."""

    id: str
    kind: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, tree: Tree, title: str, message: str, author: str) -> Commit:
        """Add a commit to `branch`."""
        parent = self.branches.get(branch)
        date = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        # The number distinguishes equal commits within one clock tick.
        identity = f"{self.id} {parent} {title} {date} {len(self.commits)}"
        commit_id = hashlib.sha1(identity.encode()).hexdigest()
        commit = Commit(commit_id, parent, title, message, author, date, tree)
        self.commits[commit_id] = commit
        self.branches[branch] = commit_id
        return commit

    def resolve(self, rev: str) -> Commit:
        """Return the commit of a branch, a tag, a full ref or a commit id."""
        name = rev.removeprefix("refs/heads/").removeprefix("refs/tags/")
        commit_id = self.branches.get(name) or self.tags.get(name) or rev
        if commit_id not in self.commits:
            raise HubError(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        return self.commits[commit_id]

    def history(self, rev: str) -> Iterator[Commit]:
        """Yield the commits up to `rev`, newest first."""
        commit_id = self.resolve(rev).id
        while commit_id:
            commit = self.commits[commit_id]
            yield commit
            commit_id = commit.parent


def git_oid(data: bytes) -> str:
    """Return the git object id of these contents."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_lfs(path: str, size: int) -> bool:
    """Whether the Hub stores such a file in large file storage."""
    return path.endswith(LFS_SUFFIXES) or size > LFS_ABOVE_BYTES


def lfs_file(sha256: str, size: int, xet: str | None = None) -> File:
    """Return a large file; git stores only a pointer to it."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return File(git_oid(pointer.encode()), size, sha256, xet)


def list_tree(tree: Tree, folder: str = "") -> list[dict]:
    """Return all folders and files in `folder`, as the API shows them."""
    below = f"{folder}/" if folder else ""
    files = {path: file for path, file in tree.items() if path.startswith(below)}
    folders = set()
    for path in files:
        while (path := path.rpartition("/")[0]) != folder:
            folders.add(path)
    shown = [
        {"type": "directory", "path": path, "oid": git_oid(path.encode()), "size": 0}
        for path in sorted(folders)
    ]
    return shown + [file.as_json(path) for path, file in sorted(files.items())]
