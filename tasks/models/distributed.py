"""Several training processes: join, wait for each other, agree."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, TypeVar

from tasks.runtime.ranks import count, local_rank, rank

Made = TypeVar("Made")

# Far more than the first process needs for anything while the others wait: that one has died is
# noticed by the agent that started them.
_LONGEST_WAIT = datetime.timedelta(days=1)


def join(device: str) -> None:
    """Meet the other processes.

    Args:
        device: `cpu` or `cuda`: decides how they will talk.
    """
    if count() == 1:
        return
    import torch

    if device == "cuda":
        torch.cuda.set_device(local_rank())
    if not torch.distributed.is_initialized():
        backend = "gloo" if device == "cpu" else "nccl"
        torch.distributed.init_process_group(backend, timeout=_LONGEST_WAIT)


def leave() -> None:
    """Part from the others: from here on, each goes on alone."""
    if count() > 1:
        import torch

        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def wait_for_all() -> None:
    """Go on when all have come here."""
    if count() > 1:
        import torch

        torch.distributed.barrier()


def any_of(flags: list[bool], device: Any) -> list[bool]:
    """For each flag, whether it is set in any process. All processes must ask.

    Args:
        flags: This process's.
        device: Of the tensors that travel.
    """
    if count() == 1:
        return flags
    import torch

    table = torch.tensor(flags, dtype=torch.int32, device=device)
    torch.distributed.all_reduce(table, torch.distributed.ReduceOp.MAX)
    return [bool(value) for value in table.tolist()]


def main_process_first(make: Callable[[bool], Made]) -> Made:
    """Have something shared made by the first process, then opened by the others.

    Args:
        make: Told whether to make it, or to open what was made.
    """
    made = make(True) if rank() == 0 else None
    wait_for_all()
    return make(False) if made is None else made
