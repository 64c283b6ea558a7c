"""The loss history of a training run, and a check that the loss moved."""

from __future__ import annotations

from transformers import TrainerState

_KEPT_IN_HISTORY = ("step", "epoch", "loss", "learning_rate", "grad_norm")
# A relative change of the loss below this, without any gradient, counts as no change.
_MIN_CHANGE = 1e-3


def history(state: TrainerState, names: tuple[str, ...]) -> list[dict[str, float]]:
    """The entries of the Trainer's log with losses or metrics of an epoch.

    Args:
        state: The Trainer's state at the end.
        names: The metrics of the validation split.
    """
    wanted = (*_KEPT_IN_HISTORY, *(f"eval_{name}" for name in names))
    entries = [
        {name: float(entry[name]) for name in wanted if name in entry}
        for entry in state.log_history
    ]
    return [entry for entry in entries if "loss" in entry or "eval_loss" in entry]


def unmoved(entries: list[dict[str, float]]) -> str | None:
    """A warning if the loss never moved and no gradient was measured; else None.

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
    if abs(first - last) > _MIN_CHANGE * abs(first):
        return None
    return f"the loss never moved ({first:.4g} to {last:.4g}) and no gradient reached the adapter"
