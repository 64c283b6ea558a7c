"""Score with generation as a run does: `python -m tests.benchmarks.ours_generation SPEC`.

The last line printed is what `peers.pipeline_generation` prints of the other side.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tasks.contracts.jobs import ScoreLanguageJob, ScoreResult
from tasks.runtime.run_program import run_program
from tests.benchmarks.ours_training import program_seconds


def main() -> None:
    """Score and report."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(spec["scratch"])
    lines: list[dict[str, Any]] = []
    run_program(
        "tasks.evaluate.language_program",
        make_job(spec),
        ScoreResult,
        scratch=folder / "program",
        on_progress=lambda line: lines.append(
            {**line, "at": time.perf_counter(), "cpu": program_seconds()}
        ),
    )
    table = pq.read_table(folder / "scores.parquet", columns=["hash_hi", "generated"])
    # The example's number is its hash here, so this is the order of the conversations.
    found = dict(zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True))
    answers = [found[number] for number in sorted(found)]
    facts = {"seconds": generating(lines, "at"), "cpu_seconds": generating(lines, "cpu")}
    print("\n" + json.dumps({"answers": answers, **facts}))


def make_job(spec: dict[str, Any]) -> ScoreLanguageJob:
    """The job of `tasks.evaluate.language_program`."""
    return ScoreLanguageJob(
        task="instruction",
        kind="merged",
        model=spec["base"],
        base=None,
        quantization="none",
        tokenizer=None,
        max_length=spec["max_length"],
        examples=spec["examples"],
        generate_tokens=spec["generate_tokens"],
        must_match="",
        must_not_contain=(),
        json_schema="",
        beta=0.1,
        batch_size=spec["batch_size"],
        measure_latency=False,
        check=None,
        out=Path(spec["scratch"]) / "scores.parquet",
        device="cpu",
    )


def generating(lines: list[dict[str, Any]], clock: str) -> float:
    """Seconds from the first line of the stage that generates to the first of the stage after it.

    Args:
        lines: Of the program's progress, each with its times.
        clock: `at` or `cpu`.
    """
    places = [place for place, line in enumerate(lines) if line["stage"] == "generating"]
    return lines[places[-1] + 1][clock] - lines[places[0]][clock]


if __name__ == "__main__":
    main()
