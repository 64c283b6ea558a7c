"""Where releases are published: a folder, an S3 prefix, or a Hub repository.

Each target does the same four things, all of them safe to repeat: check access, stage the files
where no consumer reads yet, verify them by reading back, reveal them.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import orjson
from pydantic import ValidationError

from tasks.contracts.artifacts import FileEntry, Manifest
from tasks.contracts.errors import BadRecipe, BaselineMoved, HubFailed, NoAccess, StorageFailed
from tasks.contracts.release import Publication, Release
from tasks.runtime.logs import run_logger
from tasks.storage.hub import hub_api, hub_errors
from tasks.storage.objects import open_objects
from tasks.storage.store import list_files

MANIFEST = "manifest.json"
PROBE = ".burnish-probe"
CARD = "README.md"


class Target(Protocol):
    """A place where releases are published."""

    def check_access(self) -> None:
        """Check that a release could be written. Raises NoAccess, NotFound or StorageFailed."""
        ...

    def holds(self, release: Release) -> Publication | None:
        """Where the release can be fetched from this target; None if it is not revealed here."""
        ...

    def find(self, release: Release) -> Publication | None:
        """As `holds`, also for a release that a later one has replaced."""
        ...

    def stage(self, release: Release, folder: Path) -> None:
        """Upload the files, without revealing them."""
        ...

    def reveal(self, release: Release, folder: Path, fence: int) -> Publication:
        """Verify by reading back, then reveal. A publisher with a higher fencing number is never
        undone.

        Raises:
            BaselineMoved: A later publisher has revealed another release.
        """
        ...

    def fetch(self, release: Release, folder: Path) -> None:
        """Download the release's files, README.md included, into an empty folder.

        Raises:
            BurnishError: Not all of them are there.
        """
        ...


def open_target(uri: str, private: bool) -> Target:
    """The target that a recipe names.

    Raises:
        BadRecipe: It is no URI of a repository on the Hub.
    """
    if uri.startswith("hf://"):
        return HubTarget(uri, private)
    return ObjectTarget(uri)


class ObjectTarget:
    """A folder or S3 prefix.

    <name>/<version>/…              the files, as from_pretrained reads them; manifest.json last
    <name>/latest/<channel>.json    the pointer: version, digest, path and fencing number
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.objects = open_objects(uri)

    def check_access(self) -> None:
        self.objects.write(PROBE, b"")
        self.objects.delete(PROBE)

    def holds(self, release: Release) -> Publication | None:
        revealed = self._pointer(release)[0].get("digest") == release.digest
        return self.find(release) if revealed else None

    def find(self, release: Release) -> Publication | None:
        # A release that lost a file is published again.
        listed, _ = self._listed(release)
        whole = listed is not None and not self._lost(release, listed)
        return self._publication(release) if whole else None

    def stage(self, release: Release, folder: Path) -> None:
        home = _home(release)
        listed, _ = self._listed(release)
        lost = None if listed is None else {entry.path for entry in self._lost(release, listed)}
        if lost is not None and not lost:
            return
        sent = [entry for entry in list_files(folder) if lost is None or entry.path in lost]
        for entry in sent:
            self.objects.upload(f"{home}/{entry.path}", folder / entry.path, keep=True)
        # The card of a version may have changed since: what is there is what is listed.
        entries = {entry.path: entry for entry in (*(listed or ()), *sent)}
        manifest = Manifest(kind="release", digest=release.digest, files=tuple(entries.values()))
        self.objects.write(f"{home}/{MANIFEST}", manifest.model_dump_json(indent=1).encode())

    def _lost(self, release: Release, entries: Iterable[FileEntry]) -> list[FileEntry]:
        """The listed files that are missing, or have another size."""
        home = _home(release)
        sizes = self.objects.sizes(f"{home}/")
        return [entry for entry in entries if sizes.get(f"{home}/{entry.path}") != entry.size]

    def reveal(self, release: Release, folder: Path, fence: int) -> Publication:
        self._verify(release)
        publication = self._publication(release)
        data = orjson.dumps(
            {
                "name": release.name,
                "channel": release.channel,
                "version": release.version,
                "digest": release.digest,
                "path": _home(release),
                "fence": fence,
            },
            option=orjson.OPT_INDENT_2,
        )
        while True:
            pointer, seen = self._pointer(release)
            if pointer.get("digest") == release.digest and pointer.get("fence", 0) >= fence:
                return publication
            if pointer.get("fence", 0) > fence:
                raise BaselineMoved(
                    f"{self.uri}/{_latest(release)}",
                    f"version {pointer['version']} from a later publisher",
                    "an older one",
                    "start the run again: the gate then compares with what is deployed now",
                )
            if self.objects.replace(_latest(release), data, seen):
                return publication

    def fetch(self, release: Release, folder: Path) -> None:
        for entry in self._manifest(release):
            (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
            self.objects.download(f"{_home(release)}/{entry.path}", folder / entry.path)

    def _manifest(self, release: Release) -> tuple[FileEntry, ...]:
        listed, problem = self._listed(release)
        # An empty list of files would always pass verification.
        if listed is None:
            raise StorageFailed(
                f"{self.uri}/{_home(release)}",
                problem,
                "the manifest of the release that was staged",
                "remove that version there, and start the run again",
            )
        return listed

    def _listed(self, release: Release) -> tuple[tuple[FileEntry, ...] | None, str]:
        """The files that the manifest lists; or None, and what is wrong with the manifest."""
        found = self.objects.read(f"{_home(release)}/{MANIFEST}")
        if not found:
            return None, "no manifest"
        try:
            manifest = Manifest.model_validate_json(found[0])
        except ValidationError:
            return None, f"{len(found[0])} bytes in {MANIFEST} that are no manifest"
        if manifest.digest != release.digest:
            return None, "the manifest of another release"
        return manifest.files, ""

    def _pointer(self, release: Release) -> tuple[dict, str | None]:
        """The pointer, and its tag for `replace`. The log is the truth: a pointer that cannot be
        read counts as missing, and is written again."""
        found = self.objects.read(_latest(release))
        if not found:
            return {}, None
        try:
            pointer = orjson.loads(found[0])
        except orjson.JSONDecodeError:
            pointer = None
        if not isinstance(pointer, dict):
            run_logger().warning("%s/%s is damaged and is rewritten", self.uri, _latest(release))
            pointer = {}
        return pointer, found[1]

    def _publication(self, release: Release) -> Publication:
        return Publication(
            target=self.uri,
            uri=f"{self.objects.root}/{_home(release)}",
            revision=release.digest,
        )

    def _verify(self, release: Release) -> None:
        home = _home(release)
        for entry in self._manifest(release):
            if self.objects.sha256(f"{home}/{entry.path}") != entry.sha256:
                raise StorageFailed(
                    f"{self.uri}/{home}/{entry.path}",
                    "bytes that differ from what was written",
                    f"SHA-256 {entry.sha256[:12]}…",
                    "remove that version there, and start the run again",
                )


class HubTarget:
    """A model repository on the Hub: one commit on the parent that was read, then a tag.

    Large files are uploaded before, and become visible only with the commit.
    """

    def __init__(self, uri: str, private: bool) -> None:
        self.uri, self.private = uri, private
        self.repo = uri.removeprefix("hf://").strip("/")
        if self.repo.count("/") != 1 or "@" in self.repo:
            raise BadRecipe("publish.targets", uri, "hf://owner/name", "name one repository")

    def check_access(self) -> None:
        api = hub_api()
        with hub_errors(f"publish.targets {self.uri}"):
            who = api.whoami()
        role = (who.get("auth") or {}).get("accessToken", {}).get("role", "")
        owners = {who["name"], *(item["name"] for item in who.get("orgs", ()))}
        if role == "read" or self.repo.split("/")[0] not in owners:
            raise NoAccess(
                f"publish.targets {self.uri}",
                f"a token of {who['name']} with the role '{role or 'unknown'}'",
                f"the right to write to {self.repo}",
                "set HF_TOKEN to a token that may write there",
            )

    def holds(self, release: Release) -> Publication | None:
        commit = self._tag(release)
        return self._publication(commit) if commit and self._is_main(commit) else None

    def find(self, release: Release) -> Publication | None:
        commit = self._tag(release)
        return self._publication(commit) if commit else None

    def stage(self, release: Release, folder: Path) -> None:
        api = hub_api()
        with hub_errors(f"publish.targets {self.uri}"):
            api.create_repo(self.repo, private=self.private, exist_ok=True)
            if not self._tag(release):
                api.preupload_lfs_files(self.repo, self._additions(folder), free_memory=False)

    def reveal(self, release: Release, folder: Path, fence: int) -> Publication:
        with hub_errors(f"publish.targets {self.uri}"):
            commit = self._tag(release)
            if commit is None:
                commit = self._commit(release, folder)
                self._verify(folder, commit)
                hub_api().create_tag(self.repo, tag=_tag(release), revision=commit, exist_ok=True)
            elif not self._is_main(commit):
                # A return to an older release: its tag stays, and `main` gets its files again.
                self._verify(folder, self._commit(release, folder))
            return self._publication(commit)

    def fetch(self, release: Release, folder: Path) -> None:
        from huggingface_hub import snapshot_download

        api = hub_api()
        with hub_errors(f"publish.targets {self.uri}"):
            snapshot_download(
                self.repo,
                revision=_tag(release),
                local_dir=folder,
                endpoint=api.endpoint,
                token=api.token,
            )
        # The client and the Hub add these.
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        (folder / ".gitattributes").unlink(missing_ok=True)

    def _commit(self, release: Release, folder: Path) -> str:
        from huggingface_hub import CommitOperationDelete

        api = hub_api()
        parent = api.model_info(self.repo).sha
        if not self._differences(folder, parent):
            return parent
        kept = {entry.path for entry in list_files(folder)} | {".gitattributes"}
        stale = [
            path for path in api.list_repo_files(self.repo, revision=parent) if path not in kept
        ]
        return api.create_commit(
            self.repo,
            operations=[
                *self._additions(folder),
                *(CommitOperationDelete(path_in_repo=path) for path in stale),
            ],
            commit_message=f"Release {release.version} on {release.channel}",
            parent_commit=parent,
        ).oid

    def _additions(self, folder: Path) -> list:
        from huggingface_hub import CommitOperationAdd

        return [
            CommitOperationAdd(path_in_repo=entry.path, path_or_fileobj=str(folder / entry.path))
            for entry in list_files(folder)
        ]

    def _verify(self, folder: Path, commit: str) -> None:
        if different := self._differences(folder, commit):
            raise HubFailed(
                f"{self.uri} at {commit[:8]}",
                f"{', '.join(different)} differ from what was sent",
                "the files of the release",
                "start the run again: files that are there are not sent again",
            )

    def _is_main(self, commit: str) -> bool:
        """Whether `main` has the files of a commit; its card may have been edited since."""
        with hub_errors(f"publish.targets {self.uri}"):
            if hub_api().model_info(self.repo).sha == commit:
                return True
            main, wanted = self._files("main"), self._files(commit)
        return {**main, CARD: ""} == {**wanted, CARD: ""}

    def _files(self, revision: str) -> dict[str, str]:
        """The hash of each file: SHA-256 of large ones, git's name of the others."""
        return {
            item.path: item.lfs.sha256 if item.lfs else item.blob_id
            for item in hub_api().list_repo_tree(self.repo, revision=revision, recursive=True)
            if hasattr(item, "blob_id")
        }

    def _differences(self, folder: Path, commit: str) -> list[str]:
        """Paths whose content on the Hub differs from the folder's."""
        there = self._files(commit)
        return [
            entry.path
            for entry in list_files(folder)
            if there.get(entry.path) not in (entry.sha256, git_blob_id(folder / entry.path))
        ]

    def _tag(self, release: Release) -> str | None:
        from huggingface_hub.errors import RepositoryNotFoundError

        with hub_errors(f"publish.targets {self.uri}", passing=RepositoryNotFoundError):
            try:
                tags = hub_api().list_repo_refs(self.repo).tags
            except RepositoryNotFoundError:
                return None
        return next((tag.target_commit for tag in tags if tag.name == _tag(release)), None)

    def _publication(self, commit: str) -> Publication:
        return Publication(target=self.uri, uri=f"hf://{self.repo}@{commit}", revision=commit)


def git_blob_id(path: Path) -> str:
    """SHA-1 by which git names a file's content (https://git-scm.com/book, Git Objects)."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _home(release: Release) -> str:
    return f"{release.name}/{release.version}"


def _latest(release: Release) -> str:
    return f"{release.name}/latest/{release.channel}.json"


def _tag(release: Release) -> str:
    return f"{release.channel}-{release.version}"
