"""A fake Hugging Face Hub: the part of its HTTP API that `huggingface_hub` uses.

    with HubServer() as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo("ci/model")

Like the real Hub, it checks permissions, parent commits and name conflicts, with the same status
codes and error headers. It does not check who owns a namespace: a write token can write to any.
Requests can be made to fail, and a test can act in the middle of one.
"""

import hashlib
import re
import threading
from collections.abc import Callable
from typing import Self

from .hub_api import HubRequest
from .hub_http import Fault, Listener, Reply, Request
from .hub_repo import GITATTRIBUTES, File, HubError, Repo, git_oid, is_lfs, lfs_file


class HubServer:
    """The fake Hub, on a free port of 127.0.0.1; it keeps everything in memory.

    Attributes:
        tokens: role ("write" or "read") of each valid token.
        requests: every request so far, as "METHOD /path".
        unknown: the requests that no route handles.
        repos: the repositories by (kind, id), kind being "model" or "dataset".
    """

    user = "ci"
    token = "hf_write"
    read_token = "hf_read"
    request_class: type[Request] = HubRequest

    def __init__(self, lfs_part_bytes: int = 5_000_000):
        """Files larger than `lfs_part_bytes` are uploaded in parts of that size."""
        self.lfs_part_bytes = lfs_part_bytes
        self.lock = threading.RLock()
        self._port = 0
        self._listener: Listener | None = None
        self.reset()

    def reset(self) -> None:
        """Reset repositories, contents, request log, faults and tokens."""
        self.tokens = {self.token: "write", self.read_token: "read"}
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self._faults: list[Fault] = []

    @property
    def endpoint(self) -> str:
        """The value for HF_ENDPOINT; it stays the same after a restart."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> Self:
        """Start the server, if it is not running."""
        if self._listener:
            return self
        self._listener = Listener(("127.0.0.1", self._port), self.request_class, self)
        self._port = self._listener.server_port
        # A stop waits for the next poll, by default up to half a second.
        serve = self._listener.serve_forever
        threading.Thread(target=serve, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Refuse new connections and close open ones; repositories are kept."""
        if self._listener:
            self._listener.shutdown()
            self._listener.server_close()
            self._listener.cut_connections()
            self._listener = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_) -> None:
        self.stop()

    # Faults: each applies to the next `times` requests whose path matches the pattern `path`

    def fail_next(self, method: str, path: str, *, status=500, times=1, applied=False) -> None:
        """Respond with an error. With `applied`, the request takes effect anyway."""

        def strike(request: Request) -> None:
            if applied:
                request.answer()
            request.send(Reply.of_json({"error": "A fault planned by the test"}, status))

        self._plan(method, path, times, strike)

    def drop_next(self, method: str, path: str, *, times=1, applied=False) -> None:
        """Close the connection. With `applied`, the request takes effect and half of the response
        is sent."""

        def strike(request: Request) -> None:
            if applied:
                request.send(request.answer(), cut_short=True)
            else:
                request.hang_up()

        self._plan(method, path, times, strike)

    def on_next(self, method: str, path: str, action: Callable[[], object], *, times=1) -> None:
        """Call `action` before the response: to interfere, to delay, or to kill the client."""

        def strike(request: Request) -> None:
            action()
            request.send(request.answer())

        self._plan(method, path, times, strike)

    def _plan(self, method: str, path: str, times: int, strike: Callable) -> None:
        with self.lock:
            self._faults.append(Fault(method, path, times, strike))

    def take_fault(self, method: str, path: str) -> Fault | None:
        """Return the next planned fault for such a request, and count it."""
        with self.lock:
            for fault in self._faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    # Contents, for tests to set up and to inspect without a client

    def add_repo(
        self,
        repo_id: str,
        files: dict[str, str | bytes] | None = None,
        *,
        kind: str = "model",
        private: bool = False,
    ) -> Repo:
        """Create a repository with one commit that contains `files`."""
        with self.lock:
            repo = Repo(repo_id, kind, private)
            contents = {".gitattributes": GITATTRIBUTES, **(files or {})}
            tree = {path: self._store(path, data) for path, data in contents.items()}
            repo.commit("main", tree, "initial commit", "", self.user)
            self.repos[kind, repo_id] = repo
            return repo

    def _store(self, path: str, data: str | bytes) -> File:
        data = data.encode() if isinstance(data, str) else data
        if is_lfs(path, len(data)):
            sha256 = hashlib.sha256(data).hexdigest()
            self.blobs[sha256] = data
            return lfs_file(sha256, len(data))
        return self.store_regular(data)

    def store_regular(self, data: bytes) -> File:
        """Store the contents of a file that is not in large file storage."""
        file = File(git_oid(data), len(data))
        self.blobs[file.oid] = data
        return file

    def uploaded(self, sha256: str, size: int) -> File:
        """Return a large file, whose contents must have been uploaded before the commit."""
        if sha256 not in self.blobs:
            raise HubError(400, "LFS pointer pointed to a file that does not exist")
        return lfs_file(sha256, size)

    def files(self, repo_id: str, rev: str = "main", *, kind: str = "model") -> dict[str, bytes]:
        """Return the contents of a revision, by path."""
        tree = self.repos[kind, repo_id].resolve(rev).tree
        return {path: self.blobs[file.lfs or file.oid] for path, file in tree.items()}
