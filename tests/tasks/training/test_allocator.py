"""The C library's allocator returns freed memory to the system."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Blocks below glibc's growing threshold, every second one freed: without the setting they stay.
PROGRAM = """
import ctypes, json, sys
import psutil
from tasks.training import allocator

supported = allocator.tighten() if sys.argv[1] == "tight" else None
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
size = 1 << 20
# Freeing a mapped block of this size raises glibc's own threshold above it.
libc.free(libc.malloc(2 * size))
blocks = [libc.malloc(size) for _ in range(200)]
for block in blocks:
    libc.memset(block, 1, size)
full = psutil.Process().memory_info().rss
for block in blocks[::2]:
    libc.free(block)
print(json.dumps([supported, full - psutil.Process().memory_info().rss]))
"""


def released(mode):
    """Whether the setting is supported, and how many bytes went back to the system."""
    command = [sys.executable, "-c", PROGRAM, mode]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
class TestTighten:
    def test_returns_freed_blocks_between_used_ones(self):
        supported, back = released("tight")
        assert supported is True
        assert back > 80 << 20

    def test_without_it_they_are_kept(self):
        assert released("loose")[1] < 20 << 20
