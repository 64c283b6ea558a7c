"""What a program that runs as several processes, its ranks, must know and agree on.

All of it does nothing, at no cost, in a program that is alone. `tasks.runtime.ranks_program`
starts the ranks. Importing this module imports no torch.
"""

from __future__ import annotations

import os


def rank() -> int:
    """The number of this process; the first one, 0, writes what is shared, and speaks."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """The number of this process on its machine: that of its accelerator."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))
