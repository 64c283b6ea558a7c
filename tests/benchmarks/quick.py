"""The two figures that slip unnoticed, in at most 10 minutes: `make benchmarks-quick`.

The whole flow against one plain script, and our share of a rerun where nothing changed. Prints each
with its goal and the committed figure; the exit status is 1 if a goal is missed. Nothing is
written: `python -m tests.benchmarks` makes the committed figures, with more rounds.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks import cached_rerun, measure, whole_flow

ROUNDS = {"whole_flow": 2, "cached_rerun": 3}


def main() -> None:
    """Measure, print, and exit with 1 if a goal is missed."""
    flow = _measured("whole_flow", whole_flow.run)
    rerun = _measured("cached_rerun", cached_rerun.run)
    lines = lines_of(flow, rerun, _committed("whole_flow"), _committed("cached_rerun"))
    head = ("seconds", "now", "goal, at most", "committed", "reached")
    print("\n" + measure.table(head, lines))
    sys.exit(any(line[-1] == "no" for line in lines))


def lines_of(
    flow: dict[str, Any], rerun: dict[str, Any], flow_before: dict[str, Any], rerun_before: dict
) -> list[tuple[str, float, float, float, str]]:
    """The table's lines, from two reports of now and the two committed ones."""
    figures = [
        (
            f"the whole flow (the plain script takes {flow['plain_seconds']} s)",
            flow["flow_seconds"],
            flow["goal_seconds"]["clock"],
            flow_before["flow_seconds"],
        ),
        (
            "our share of an unchanged rerun, against a server",
            rerun["with_server"]["ours seconds"],
            cached_rerun.OURS_GOAL,
            rerun_before["with_server"]["ours seconds"],
        ),
        (
            "our share of an unchanged rerun, with Prefect's own server",
            rerun["embedded"]["ours seconds"],
            cached_rerun.OURS_GOAL,
            rerun_before["embedded"]["ours seconds"],
        ),
    ]
    return [(*figure, "yes" if figure[1] <= figure[2] else "no") for figure in figures]


def _measured(name: str, run: Callable[[Path, int], dict[str, Any]]) -> dict[str, Any]:
    print(f"== {name}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    try:
        return run(folder, ROUNDS[name])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _committed(name: str) -> dict[str, Any]:
    return json.loads((measure.RESULTS / f"{name}.json").read_text())


if __name__ == "__main__":
    main()
