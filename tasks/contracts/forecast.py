"""The forecast of a training: memory, and the amount of work."""

from __future__ import annotations

from pydantic import Field

from tasks.contracts.base import Contract
from tasks.contracts.results import StepResult


class Remedy(Contract):
    """A change of the recipe, and the memory that training would need with it.

    Attributes:
        change: As in the recipe, such as `quantization: nf4`.
        peak: Bytes.
        fits: Whether that fits.
    """

    change: str
    peak: int
    fits: bool


class Forecast(StepResult):
    """The memory that training needs, from tracing one step (`tasks.plan.forecast_program`).

    The artifact (kind `forecast`) holds the same as `forecast.json`.
    """

    device: str
    """`cpu` or `cuda`."""
    unknown: str = ""
    """Why there is no forecast; the other fields then mean nothing."""
    parts: dict[str, int] = Field(default_factory=dict)
    """Bytes at the peak: weights, quantization constants, adapters, gradients, optimizer,
    activations, transient, overhead."""
    memory: int = 0
    """Bytes of the device, or of this machine; 0 if unknown."""
    reserve: int = 0
    """Bytes of it that training leaves free."""
    fits: bool = True
    checkpointing: bool = False
    """Whether activations are recomputed, so that it fits."""
    micro_batch_tokens: int = 0
    """The most tokens per forward pass that fit."""
    longest: int = 0
    """Tokens of the longest example."""
    trained_parameters: int = 0
    merge_memory: int = 0
    """Bytes that merging the adapter takes on the card."""
    merge_host_memory: int = 0
    """Bytes that it takes of the machine's own memory."""
    host_memory: int = 0
    """Bytes of the machine's own memory; 0 if unknown."""
    host_reserve: int = 0
    """Bytes of it that training leaves free."""
    remedies: tuple[Remedy, ...] = ()
    """What would help, if it does not fit."""

    @property
    def peak(self) -> int:
        """Bytes at the peak of training."""
        return sum(self.parts.values())


class Workload(Contract):
    """How much a training has to do, and the throughput of a similar one.

    Attributes:
        tokens: Real tokens of one epoch.
        epochs: Passes over the training data.
        steps: Optimizer steps of all epochs.
        device_kind: The card or processor that trains.
        tokens_per_second: Of the last similar training on that kind of device; 0 if unknown.
    """

    tokens: int
    epochs: int
    steps: int
    device_kind: str
    tokens_per_second: float = 0.0

    @property
    def seconds(self) -> float | None:
        """Of training; None if the throughput is unknown."""
        if not self.tokens_per_second:
            return None
        return self.tokens * self.epochs / self.tokens_per_second


# What glibc keeps by default, at worst, as a multiple of what is in use: measured by
# tests.benchmarks.memory_forecast.
_LOOSE = 2.5


def must_be_tight(forecast: Forecast) -> bool:
    """Whether the training program must return freed memory to the system at once, which is slower:
    see `tasks.training.allocator`."""
    need = max(forecast.merge_host_memory, forecast.peak if forecast.device == "cpu" else 0)
    return 0 < forecast.host_memory - forecast.host_reserve < need * _LOOSE
