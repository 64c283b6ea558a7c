"""The routes of the fake Hub, one method each."""

import base64
import hashlib
import json
import re
from urllib.parse import parse_qs

import yaml

from .hub_http import Reply, Request, route
from .hub_repo import Commit, File, HubError, Repo, Tree, is_lfs, list_tree

REPO = r"/api/(?P<kind>model|dataset)s/(?P<repo_id>[^/]+/[^/]+)"
PAGE = r"/(?P<kind>datasets/)?(?P<repo_id>[^/]+/[^/]+)"
REV = r"/(?P<rev>[^/]+)"
LFS = r"/lfs/(?P<oid>[0-9a-f]{64})"


class HubRequest(Request):
    """A request to the Hub's API, its file pages or its large file storage."""

    # Permissions

    def check_token(self) -> None:
        """Set the client's role, empty without a token. An unknown token is always refused."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        self.role = self.hub.tokens.get(token, "")

    def require_write(self) -> None:
        if not self.role:
            raise HubError(401, "Invalid username or password.")
        if self.role != "write":
            raise HubError(403, "Forbidden: you must use a write token")

    def repo(self, kind: str, repo_id: str) -> Repo:
        """Return a repository; one that the client may not read is "not found"."""
        repo = self.hub.repos.get((kind, repo_id))
        if not repo or (repo.private and not self.role):
            raise HubError(404 if self.role else 401, "Repository not found", "RepoNotFound")
        return repo

    def repo_to_write(self, kind: str, repo_id: str) -> Repo:
        repo = self.repo(kind, repo_id)
        self.require_write()
        return repo

    @route("GET", "/api/whoami-v2")
    def whoami(self):
        if not self.role:
            raise HubError(401, "Invalid username or password.")
        access = {"displayName": self.role, "role": self.role}
        auth = {"type": "access_token", "accessToken": access}
        return {"type": "user", "name": self.hub.user, "orgs": [], "auth": auth}

    @route("GET", REPO + "/auth-check")
    def auth_check(self, kind, repo_id):
        self.repo(kind, repo_id)
        return {}

    @route("GET", REPO + "/auth-check/write")
    def auth_check_write(self, kind, repo_id):
        self.repo_to_write(kind, repo_id)
        return {}

    # Repositories

    def repo_named_in_body(self) -> tuple[str, str]:
        wanted = self.json()
        owner = wanted.get("organization") or self.hub.user
        return wanted.get("type") or "model", f"{owner}/{wanted['name']}"

    @route("POST", "/api/repos/create")
    def create_repo(self):
        self.require_write()
        kind, repo_id = self.repo_named_in_body()
        url = f"{self.hub.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        if (kind, repo_id) in self.hub.repos:
            # With `exist_ok`, the client reads the URL from this error.
            return Reply.of_json({"error": f"This {kind} repo exists already", "url": url}, 409)
        self.hub.add_repo(repo_id, kind=kind, private=self.json().get("visibility") == "private")
        return {"url": url, "name": repo_id}

    @route("DELETE", "/api/repos/delete")
    def delete_repo(self):
        kind, repo_id = self.repo_named_in_body()
        self.repo_to_write(kind, repo_id)
        del self.hub.repos[kind, repo_id]
        return {}

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self):
        return {"errors": [], "warnings": []}

    @route("GET", REPO)
    @route("GET", REPO + "/revision" + REV)
    def info(self, kind, repo_id, rev="main"):
        repo = self.repo(kind, repo_id)
        commit = repo.resolve(rev)
        card = self.card(commit)
        licenses = [f"license:{card['license']}"] if "license" in card else []
        return {
            "id": repo_id,
            "author": repo_id.split("/")[0],
            "sha": commit.id,
            "lastModified": commit.date,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "tags": [*card.get("tags", []), *licenses],
            "pipeline_tag": card.get("pipeline_tag"),
            "library_name": card.get("library_name"),
            "cardData": card,
            "siblings": [{"rfilename": path} for path in sorted(commit.tree)],
        }

    def card(self, commit: Commit) -> dict:
        """Return the metadata at the top of README.md."""
        readme = commit.tree.get("README.md")
        text = self.hub.blobs[readme.oid].decode() if readme else ""
        match = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        return (yaml.safe_load(match[1]) if match else None) or {}

    @route("GET", REPO + "/tree" + REV + "(?:/(?P<folder>.*))?")
    def tree(self, kind, repo_id, rev, folder):
        entries = list_tree(self.repo(kind, repo_id).resolve(rev).tree, folder)
        if folder and not entries:
            raise HubError(404, f"{folder} does not exist on {rev}", "EntryNotFound")
        if self.query.get("recursive", "").lower() != "true":
            entries = [entry for entry in entries if entry["path"].rpartition("/")[0] == folder]
        return entries

    @route("POST", REPO + "/paths-info" + REV)
    def paths_info(self, kind, repo_id, rev):
        wanted = parse_qs(self.body.decode()).get("paths", [])
        entries = list_tree(self.repo(kind, repo_id).resolve(rev).tree)
        return [entry for entry in entries if entry["path"] in wanted]

    # Commits

    @route("POST", REPO + "/preupload" + REV)
    def preupload(self, kind, repo_id, rev):
        tree = self.repo_to_write(kind, repo_id).resolve(rev).tree
        return {"files": [self.upload_mode(tree, file) for file in self.json()["files"]]}

    def upload_mode(self, tree: Tree, wanted: dict) -> dict:
        """Return how to upload a file, and the current object id: equal contents are not sent."""
        path = wanted["path"]
        mode = "lfs" if is_lfs(path, wanted["size"]) else "regular"
        there = tree.get(path)
        oid = (there.lfs or there.oid) if there else None
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    @route("POST", REPO + "/commit" + REV)
    def commit(self, kind, repo_id, rev):
        repo = self.repo_to_write(kind, repo_id)
        head = repo.resolve(rev)
        branch = rev.removeprefix("refs/heads/")
        if branch not in repo.branches:
            raise HubError(400, "Commits go to a branch")
        header, *operations = map(json.loads, self.body.splitlines())
        header = header["value"]
        if header.get("parentCommit", head.id) != head.id:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(head.tree)
        for operation in operations:
            self.apply(operation["key"], operation["value"], tree)
        new = repo.commit(branch, tree, header["summary"], header["description"], self.hub.user)
        url = f"{self.hub.endpoint}/{repo_id}/commit/{new.id}"
        return {"success": True, "commitOid": new.id, "commitUrl": url}

    def apply(self, operation: str, value: dict, tree: Tree) -> None:
        """Apply one operation of a commit to `tree`."""
        path = value["path"]
        if operation == "file":
            tree[path] = self.hub.store_regular(base64.b64decode(value["content"]))
        elif operation == "lfsFile":
            tree[path] = self.hub.uploaded(value["oid"], value["size"])
        elif operation == "deletedFolder":
            for inside in [name for name in tree if name.startswith(path.rstrip("/") + "/")]:
                del tree[inside]
        elif operation == "deletedFile":
            if tree.pop(path, None) is None:
                raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
        else:
            raise HubError(400, f"Unknown operation {operation}")

    @route("GET", REPO + "/commits" + REV)
    def commits(self, kind, repo_id, rev):
        return [
            {
                "id": commit.id,
                "title": commit.title,
                "message": commit.message,
                "date": commit.date,
                "authors": [{"user": commit.author}],
            }
            for commit in self.repo(kind, repo_id).history(rev)
        ]

    # Branches and tags

    @route("GET", REPO + "/refs")
    def refs(self, kind, repo_id):
        repo = self.repo(kind, repo_id)
        branches, tags = list_refs("heads", repo.branches), list_refs("tags", repo.tags)
        return {"branches": branches, "tags": tags, "converts": []}

    @route("POST", REPO + "/tag" + REV)
    def create_tag(self, kind, repo_id, rev):
        repo = self.repo_to_write(kind, repo_id)
        return add_ref(repo.tags, self.json()["tag"], repo.resolve(rev))

    @route("DELETE", REPO + "/tag" + REV)
    def delete_tag(self, kind, repo_id, rev):
        return remove_ref(self.repo_to_write(kind, repo_id).tags, rev)

    @route("POST", REPO + "/branch" + REV)
    def create_branch(self, kind, repo_id, rev):
        repo = self.repo_to_write(kind, repo_id)
        return add_ref(repo.branches, rev, repo.resolve(self.json().get("startingPoint", "main")))

    @route("DELETE", REPO + "/branch" + REV)
    def delete_branch(self, kind, repo_id, rev):
        return remove_ref(self.repo_to_write(kind, repo_id).branches, rev)

    # Large file storage; its URLs need no token, because the real Hub signs them

    @route("POST", PAGE + r"\.git/info/lfs/objects/batch")
    def lfs_batch(self, kind, repo_id):
        self.repo_to_write("dataset" if kind else "model", repo_id)
        objects = self.json()["objects"]
        for wanted in objects:
            if wanted["oid"] not in self.hub.blobs:
                wanted["actions"] = self.lfs_actions(wanted["oid"], wanted["size"])
        return {"transfer": "basic", "objects": objects}

    def lfs_actions(self, oid: str, size: int) -> dict:
        """Return the upload URL of a large file, or of its parts if it is larger than one part."""
        storage, part_bytes = f"{self.hub.endpoint}/lfs/{oid}", self.hub.lfs_part_bytes
        upload = {"href": storage}
        if size > part_bytes:
            count = -(-size // part_bytes)
            parts = {f"{number:05d}": f"{storage}/{number}" for number in range(1, count + 1)}
            upload["header"] = {"chunk_size": str(part_bytes), **parts}
        return {"upload": upload, "verify": {"href": f"{storage}/verify"}}

    def store_lfs(self, oid: str, data: bytes) -> dict:
        if hashlib.sha256(data).hexdigest() != oid:
            raise HubError(400, "The SHA-256 of the contents differs from the object id")
        self.hub.blobs[oid] = data
        return {}

    @route("PUT", LFS)
    def lfs_put(self, oid):
        return self.store_lfs(oid, self.body)

    @route("PUT", LFS + r"/(?P<number>\d+)")
    def lfs_put_part(self, oid, number):
        self.hub.parts[oid, int(number)] = self.body
        etag = hashlib.md5(self.body).hexdigest()
        return Reply(headers={"ETag": f'"{etag}"'})

    @route("POST", LFS)
    def lfs_complete(self, oid):
        numbers = [part["partNumber"] for part in self.json()["parts"]]
        return self.store_lfs(oid, b"".join(self.hub.parts.pop((oid, n)) for n in numbers))

    @route("POST", LFS + "/verify")
    def lfs_verify(self, oid):
        if oid not in self.hub.blobs:
            raise HubError(404, "Not uploaded")
        return {}

    @route("GET", LFS)
    def lfs_get(self, oid):
        return self.contents(oid, {"ETag": f'"{oid}"'})

    # Downloads

    @route("GET", PAGE + "/resolve" + REV + "/(?P<path>.+)")
    def resolve(self, kind, repo_id, rev, path):
        repo = self.repo("dataset" if kind else "model", repo_id)
        commit = repo.resolve(rev)
        headers = {"X-Repo-Commit": commit.id}
        file = commit.tree.get(path)
        if not file:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        headers["ETag"] = f'"{file.oid}"'
        if file.lfs:
            return Reply(status=302, headers=headers | self.lfs_headers(repo, commit, file))
        return self.contents(file.oid, headers)

    def lfs_headers(self, repo: Repo, commit: Commit, file: File) -> dict:
        """Return the headers that redirect a download to large file storage.

        The storage has another host name: within one host, the client would follow the redirect
        before it reads the headers, and miss X-Repo-Commit.
        """
        storage = self.hub.endpoint.replace("127.0.0.1", "localhost")
        return {
            "X-Linked-Etag": f'"{file.lfs}"',
            "X-Linked-Size": str(file.size),
            "Location": f"{storage}/lfs/{file.lfs}",
        }

    def contents(self, oid: str, headers: dict) -> Reply:
        """Return contents, or the requested range of them."""
        if oid not in self.hub.blobs:
            raise HubError(404, "No such contents")
        data = self.hub.blobs[oid]
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return Reply(data, 200, headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return Reply(data[first : last + 1], 206, headers)


def list_refs(folder: str, names: dict[str, str]) -> list[dict]:
    """Return branches or tags, as the API shows them."""
    return [
        {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": commit_id}
        for name, commit_id in names.items()
    ]


def add_ref(names: dict[str, str], name: str, commit: Commit) -> dict:
    """Add a branch or tag."""
    if name in names:
        raise HubError(409, f"Reference already exists: {name}")
    names[name] = commit.id
    return {}


def remove_ref(names: dict[str, str], name: str) -> dict:
    """Remove a branch or tag."""
    if names.pop(name, None) is None:
        raise HubError(404, f"No such reference: {name}", "RevisionNotFound")
    return {}
