"""The fake Hub with xet storage, for tests with xet enabled.

The client's xet library can store contents in a local folder instead of a storage network, so
nothing has to serve them. The fake Hub only returns the folder's URL, and reads from the shard
files that the client wrote there which SHA-256 belongs to which xet hash.
"""

import struct
import time
from collections.abc import Iterator
from pathlib import Path

from .hub import HubServer
from .hub_api import REPO, REV, HubRequest
from .hub_http import Reply, route
from .hub_repo import Commit, File, HubError, Repo, lfs_file

SHARD_HEADER_BYTES = 48
ENTRY_BYTES = 48
HASH_BYTES = 32
END_OF_FILES = b"\xff" * HASH_BYTES
HAS_VERIFICATION = 1 << 31
HAS_SHA256 = 1 << 30


class XetHubRequest(HubRequest):
    """Adds the routes for xet storage."""

    @route("GET", REPO + "/xet-(?P<use>read|write)-token" + REV)
    def xet_token(self, kind, repo_id, use, rev):
        (self.repo_to_write if use == "write" else self.repo)(kind, repo_id)
        url, expires = self.hub.cas_url, int(time.time()) + 3600
        headers = {
            "X-Xet-Cas-Url": url,
            "X-Xet-Access-Token": "xet",
            "X-Xet-Token-Expiration": str(expires),
        }
        body = {"casUrl": url, "accessToken": "xet", "exp": expires}
        return Reply.of_json(body, headers=headers)

    def lfs_headers(self, repo: Repo, commit: Commit, file: File) -> dict:
        headers = super().lfs_headers(repo, commit, file)
        if file.xet:
            page = f"{self.hub.endpoint}/api/{repo.kind}s/{repo.id}"
            headers["X-Xet-Hash"] = file.xet
            headers["Link"] = f'<{page}/xet-read-token/{commit.id}>; rel="xet-auth"'
        return headers


class XetHubServer(HubServer):
    """A HubServer whose large files go to xet storage in `folder`."""

    request_class = XetHubRequest

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = Path(folder)

    @property
    def cas_url(self) -> str:
        """The URL of the folder where the client stores contents."""
        return f"local://{self.folder}"

    def uploaded(self, sha256: str, size: int) -> File:
        for shard in self.folder.glob("xet/xorbs/shards/*.mdb"):
            for xet_hash, names in files_of_shard(shard.read_bytes()):
                if sha256 in names:
                    return lfs_file(sha256, size, xet_hash)
        raise HubError(400, "LFS pointer pointed to a file that does not exist")


def files_of_shard(shard: bytes) -> Iterator[tuple[str, set[str]]]:
    """Yield each file's xet hash, and its SHA-256 in both byte orders that occur."""
    at = SHARD_HEADER_BYTES
    while (file_hash := shard[at : at + HASH_BYTES]) != END_OF_FILES:
        flags, segments = struct.unpack_from("<II", shard, at + HASH_BYTES)
        at += ENTRY_BYTES * (1 + segments)
        if flags & HAS_VERIFICATION:
            at += ENTRY_BYTES * segments
        names = set()
        if flags & HAS_SHA256:
            sha256 = shard[at : at + HASH_BYTES]
            names = {sha256.hex(), xet_hex(sha256)}
            at += ENTRY_BYTES
        yield xet_hex(file_hash), names


def xet_hex(digest: bytes) -> str:
    """Return a hash in xet's notation: four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))
