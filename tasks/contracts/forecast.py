"""What a training will take, told before it begins."""

from __future__ import annotations

from pydantic import Field

from tasks.contracts.base import Contract
from tasks.contracts.results import StepResult


class Remedy(Contract):
    """A change of the recipe, and the memory that training would need with it.

    Attributes:
        change: As the recipe says it: `quantization: nf4`.
        peak: Bytes.
        fits: Whether that is little enough.
    """

    change: str
    peak: int
    fits: bool


class Forecast(StepResult):
    """The memory that training needs, from tracing one step (`tasks.plan.forecast_program`).

    The artifact (kind `forecast`) holds `forecast.json`: the same.
    """

    device: str
    """`cpu` or `cuda`."""
    unknown: str = ""
    """Why nothing could be told; then nothing else here counts."""
    parts: dict[str, int] = Field(default_factory=dict)
    """Bytes at the fullest moment: weights, quantization constants, adapters, gradients, optimizer,
    activations, transient, overhead."""
    memory: int = 0
    """Bytes of the device, or of this machine; 0 where nobody knows."""
    reserve: int = 0
    """Bytes of it that are left alone."""
    fits: bool = True
    checkpointing: bool = False
    """Whether activations are computed twice, so that it fits."""
    micro_batch_tokens: int = 0
    """The most tokens at once that fit."""
    longest: int = 0
    """Tokens of the longest example."""
    trained_parameters: int = 0
    shipping: int = 0
    """Bytes that merging the adapter takes on the card."""
    shipping_host: int = 0
    """Bytes that it takes of the machine's own memory."""
    host_memory: int = 0
    """Bytes of the machine's own memory; 0 where nobody knows."""
    host_reserve: int = 0
    """Bytes of it that are left alone."""
    remedies: tuple[Remedy, ...] = ()
    """What would help, where it does not fit."""

    @property
    def peak(self) -> int:
        """Bytes at the fullest moment of training."""
        return sum(self.parts.values())


class Workload(Contract):
    """How much there is to do, and how fast it went before.

    Attributes:
        tokens: Real tokens of one epoch.
        epochs: Of the recipe.
        steps: Of the optimizer, in all epochs.
        device_kind: The card or processor that trains.
        tokens_per_second: Measured on that kind of device for a like model; 0 where it never was.
    """

    tokens: int
    epochs: int
    steps: int
    device_kind: str
    tokens_per_second: float = 0.0

    @property
    def seconds(self) -> float | None:
        """Of training; None where no throughput is known."""
        if not self.tokens_per_second:
            return None
        return self.tokens * self.epochs / self.tokens_per_second


# What glibc keeps unless it is told otherwise, at worst, as a multiple of what is in use: measured
# by tests.benchmarks.memory_forecast.
_LOOSE = 2.5


def must_be_tight(told: Forecast) -> bool:
    """Whether the program that trains must give memory back to the machine at once, which is
    slower: see `tasks.training.allocator`."""
    need = max(told.shipping_host, told.peak if told.device == "cpu" else 0)
    return 0 < told.host_memory - told.host_reserve < need * _LOOSE
