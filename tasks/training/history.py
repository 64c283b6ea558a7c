"""The losses of a training, as they are kept and judged."""

from __future__ import annotations

from transformers import TrainerState

_KEPT_IN_HISTORY = ("step", "epoch", "loss", "learning_rate", "grad_norm")
# Losses that differ by less than this share, with no gradient at all, have not moved.
_STILL = 1e-3


def history(state: TrainerState, names: tuple[str, ...]) -> list[dict[str, float]]:
    """What is kept of a training's log: losses, and the metrics of each epoch."""
    wanted = (*_KEPT_IN_HISTORY, *(f"eval_{name}" for name in names))
    entries = [
        {name: float(entry[name]) for name in wanted if name in entry}
        for entry in state.log_history
    ]
    return [entry for entry in entries if "loss" in entry or "eval_loss" in entry]


def unmoved(entries: list[dict[str, float]]) -> str | None:
    """A warning, if a training's loss never moved and there was no gradient.

    Args:
        entries: From `history`.
    """
    logged = [entry for entry in entries if "loss" in entry]
    third = len(logged) // 3
    if not third or any(entry.get("grad_norm", 1.0) for entry in logged):
        return None
    first, last = (
        sum(entry["loss"] for entry in part) / third for part in (logged[:third], logged[-third:])
    )
    if abs(first - last) > _STILL * abs(first):
        return None
    return f"the loss never moved ({first:.4g} to {last:.4g}) and no gradient reached the adapter"
