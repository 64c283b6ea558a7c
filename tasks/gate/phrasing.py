"""Numbers and counts in the gate's sentences."""

from __future__ import annotations


def number(value: float, digits: int = 3) -> str:
    """Three decimals, or as many as a small value needs to differ from zero."""
    while value and digits < 6 and float(f"{value:.{digits}f}") == 0:
        digits += 1
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float) -> str:
    """With its sign, whichever that is."""
    return number(value) if value < 0 else f"+{number(value)}"


def apart(value: float, limit: float, digits: int = 3) -> tuple[str, str]:
    """Both as text, with as many decimals as it takes to tell them apart."""
    while value != limit and digits < 9 and f"{value:.{digits}f}" == f"{limit:.{digits}f}":
        digits += 1
    return f"{value:.{digits}f}", f"{limit:g}"


def p_value(p_value: float) -> str:
    """A p-value with its name."""
    return "p < 0.0001" if p_value < 0.0001 else f"p = {p_value:.2g}"


def count(number: int, noun: str) -> str:
    """So many of something."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(names: list[str]) -> str:
    """The first five, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
