"""Coordinate several training processes: join, wait for each other, agree."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, TypeVar

from tasks.runtime.ranks import count, local_rank, rank

T = TypeVar("T")

# Far longer than the main process needs for anything that the others wait for. A process that
# died is noticed by the agent that started them, not by this timeout.
_TIMEOUT = datetime.timedelta(days=1)


def join(device: str) -> None:
    """Join the process group; with one process, do nothing.

    Args:
        device: `cpu` (gloo) or `cuda` (NCCL).
    """
    if count() == 1:
        return
    import torch

    if device == "cuda":
        torch.cuda.set_device(local_rank())
    if not torch.distributed.is_initialized():
        backend = "gloo" if device == "cpu" else "nccl"
        torch.distributed.init_process_group(backend, timeout=_TIMEOUT)


def leave() -> None:
    """Wait for the other processes and leave the process group."""
    if count() > 1:
        import torch

        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def barrier() -> None:
    """Wait until every process has reached this point."""
    if count() > 1:
        import torch

        torch.distributed.barrier()


def reshard(model: Any) -> None:
    """Free the gathered layers of a sharded model, in every process.

    After an evaluation the outermost layers stay gathered, until a process reads the model's
    tensors, as the main process does to keep them. It alone would then gather them anew.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def any_process(flags: list[bool], device: Any) -> list[bool]:
    """For each flag, whether it is set in any process. Every process must call this.

    Args:
        flags: The flags of this process.
        device: The device of the tensor that is reduced.
    """
    if count() == 1:
        return flags
    import torch

    table = torch.tensor(flags, dtype=torch.int32, device=device)
    torch.distributed.all_reduce(table, torch.distributed.ReduceOp.MAX)
    return [bool(value) for value in table.tolist()]


def main_process_first(make: Callable[[bool], T]) -> T:
    """Create something shared in the main process, then open it in the others.

    Args:
        make: Called with True to create it and with False to open it.
    """
    made = make(True) if rank() == 0 else None
    barrier()
    return make(False) if made is None else made
