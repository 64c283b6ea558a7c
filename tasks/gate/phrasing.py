"""How the gate's sentences write numbers, counts and metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricPhrasing:
    """The words and units for one metric.

    Attributes:
        name: The metric's name.
        unit: Follows each of its values, with a leading space; empty without a unit.
        lower_is_better: True for losses.
        relative: Whether differences are shares of the baseline's value, shown as percentages.
    """

    name: str
    unit: str = ""
    lower_is_better: bool = False
    relative: bool = False

    @property
    def title(self) -> str:
        """The name at the beginning of a sentence."""
        return f"{self.name[0].upper()}{self.name[1:]}"

    @property
    def gain(self) -> str:
        """The noun for an improvement."""
        return "fall" if self.lower_is_better else "gain"

    @property
    def setback(self) -> str:
        """The noun for the opposite of an improvement."""
        return "rise" if self.lower_is_better else "drop"

    def difference(self, value: float) -> str:
        """A difference with its sign."""
        return f"{signed(100 * value)}%" if self.relative else signed(value)

    def distance(self, value: float) -> str:
        """A difference without a sign."""
        return f"{number(100 * value)}%" if self.relative else number(value)

    def margin(self, value: float) -> str:
        """A margin, as the recipe writes it."""
        return f"{100 * value:g}%" if self.relative else f"{value:g}{self.unit}"


def number(value: float, digits: int = 3) -> str:
    """Format with three decimals, or with more if a small value would read as zero."""
    while value and digits < 6 and float(f"{value:.{digits}f}") == 0:
        digits += 1
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float) -> str:
    """Format with an explicit plus or minus sign."""
    return number(value) if value < 0 else f"+{number(abs(value))}"


def distinct(value: float, limit: float, digits: int = 3) -> tuple[str, str]:
    """Format a value and its limit, with enough decimals to tell them apart."""
    while value != limit and digits < 9 and f"{value:.{digits}f}" == f"{limit:.{digits}f}":
        digits += 1
    return f"{value:.{digits}f}", f"{limit:g}"


def p_value(p_value: float, limit: float | None = None) -> str:
    """Format a p-value: `p = 0.012`, `p < 0.0001`; with digits that tell it from a limit."""
    if p_value < 0.0001:
        return "p < 0.0001"
    digits = 2
    while limit is not None and digits < 9 and f"{p_value:.{digits}g}" == f"{limit:.{digits}g}":
        if p_value == limit:
            break
        digits += 1
    return f"p = {p_value:.{digits}g}"


def count(number: int, noun: str) -> str:
    """Format a count with its noun in the singular or plural."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def excluded(number: int) -> str:
    """The sentence, after a space, on test examples that training used; empty for none."""
    if not number:
        return ""
    verb = "was" if number == 1 else "were"
    return f" {number} {verb} excluded because a model saw them in training."


def too_few_examples(examples: int, needed: int, setting: str) -> str:
    """The sentence for a margin that no outcome on so few examples could show.

    Args:
        examples: Size of the test set.
        needed: The least size with which the margin could be shown.
        setting: The name of the margin.
    """
    return (
        f"With {count(examples, 'example')}, even two models that always agree could not show it: "
        f"that takes {needed} examples or a wider {setting}."
    )


def percent(share: float) -> str:
    """Format a probability: `29%`, `below 1%`."""
    if 0 < share < 0.01 or 0.99 < share < 1:
        return "below 1%" if share < 0.5 else "above 99%"
    return f"{100 * share:.0f}%"


def listed(names: list[str]) -> str:
    """The first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
