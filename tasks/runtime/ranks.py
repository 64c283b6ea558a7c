"""The rank of this process among those that run one program together.

A program that runs as a single process is rank 0 of 1. `tasks.runtime.ranks_program` starts the
ranks. Importing this module imports no torch.
"""

from __future__ import annotations

import os


def rank() -> int:
    """The number of this process. Rank 0 writes shared files and reports progress."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """The number of this process on its machine, and so of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def count() -> int:
    """How many processes run the program."""
    return int(os.environ.get("WORLD_SIZE", "1"))
