"""Several training processes agree, and create what they share once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

from tasks.models import distributed

# Two processes; each prints what it saw.
PROGRAM = """
import json, sys
from pathlib import Path
from tasks.models import distributed
from tasks.runtime import ranks

distributed.join("cpu")
file = Path(sys.argv[1])
def make(create):
    if create:
        assert not file.exists()
        file.write_text("made")
    return f"{'created' if create else 'opened'} {file.read_text()}"
first = distributed.main_process_first(make)
flags = distributed.any_process([ranks.rank() == 1, False], "cpu")
distributed.barrier()
distributed.leave()
print(json.dumps([first, flags]))
"""


class TestOneProcess:
    def test_needs_no_group(self):
        distributed.join("cpu")
        distributed.barrier()
        assert distributed.any_process([True, False], "cpu") == [True, False]
        assert distributed.main_process_first(lambda create: create) is True
        distributed.leave()


class TestTwoProcesses:
    def test_agree_and_the_main_one_creates(self, tmp_path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(tmp_path / "file")],
                env={**shared, "RANK": rank, "LOCAL_RANK": rank},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in "01"
        ]
        found = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
        assert found == [
            ["created made", [True, False]],
            ["opened made", [True, False]],
        ]
