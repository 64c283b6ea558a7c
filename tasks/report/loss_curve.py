"""The loss curve as an SVG image."""

from __future__ import annotations

import base64
from collections.abc import Sequence


def loss_curve(history: Sequence[dict[str, float]], width: int = 560, height: int = 180) -> str:
    """Training and validation loss over steps, as a markdown image that needs no network."""
    lines = {
        "#3b6fd4": [(row["step"], row["loss"]) for row in history if "loss" in row],
        "#d4623b": [(row["step"], row["eval_loss"]) for row in history if "eval_loss" in row],
    }
    points = [point for line in lines.values() for point in line]
    if len(points) < 2:
        return ""
    right = max(step for step, _ in points) or 1
    top = max(loss for _, loss in points) or 1

    def place(point: tuple[float, float]) -> str:
        x = 40 + (width - 50) * point[0] / right
        y = 10 + (height - 35) * (1 - point[1] / top)
        return f"{x:.1f},{y:.1f}"

    drawn = "".join(
        f'<polyline fill="none" stroke="{color}" stroke-width="2" '
        f'points="{" ".join(place(point) for point in line)}"/>'
        for color, line in lines.items()
    )
    # An epoch's loss is one point, and one point is no line.
    drawn += "".join(
        f'<circle cx="{x}" cy="{y}" r="4" fill="#d4623b"/>'
        for x, y in (place(point).split(",") for point in lines["#d4623b"])
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f"{drawn}"
        f'<text x="4" y="16">{top:.2f}</text><text x="4" y="{height - 25}">0</text>'
        f'<text x="{width - 60}" y="{height - 6}">step {right:.0f}</text>'
        f'<text x="40" y="{height - 6}" fill="#3b6fd4">training loss</text>'
        f'<text x="140" y="{height - 6}" fill="#d4623b">validation loss</text></svg>'
    )
    return f"![loss](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"
