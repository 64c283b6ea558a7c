"""Check, before training, that lm-evaluation-harness has the named tasks and their data.

Job: `CheckBenchmarksJob`. Task files may name their data by paths below their folder.

Programs have no network access: data sets from the Hub must be in the machine's cache.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from tasks.contracts.errors import BadRecipe, NotFound
from tasks.contracts.jobs import CheckBenchmarksJob, Done
from tasks.runtime.program import Reporter, run

WHERE = "evaluation.benchmarks"


def main(job: CheckBenchmarksJob, reporter: Reporter) -> Done:
    """See the module's description.

    Raises:
        BadRecipe: A task is unknown, or its file is invalid.
        NotFound: A task's data is not on this machine.
    """
    if job.folder:
        os.chdir(job.folder)
    names = list(job.tasks)
    manager = find_tasks(names, job.folder)
    reporter.progress(always=True, stage="looking for data")
    try:
        manager.load(names)
    except (ConnectionError, FileNotFoundError) as error:
        raise missing_data(names, error) from None
    except Exception as error:  # an invalid file can raise anything
        raise BadRecipe(
            WHERE,
            f"{', '.join(map(repr, names))}: {type(error).__name__}: {str(error)[:300]}",
            "tasks that the harness can load",
            "correct the task's file; `lm-eval validate --tasks NAMES` says more",
        ) from None
    return Done()


def missing_data(names: list[str], error: Exception) -> NotFound:
    """The error for a task whose data the harness did not find."""
    return NotFound(
        WHERE,
        f"data that is not on this machine ({str(error)[:300]})",
        "the data of each task in the cache of Hugging Face datasets, or next to its file",
        f"run `lm-eval run --model dummy --tasks {' '.join(names)} --limit 1` once "
        "with network access",
    )


def find_tasks(names: list[str], folder: Path | None) -> Any:
    """Find tasks by name; the library's own tasks are indexed only if they are needed.

    Args:
        names: The tasks.
        folder: The user's own task files; None if there are none.

    Returns:
        The harness's `TaskManager` that has them.

    Raises:
        BadRecipe: A task is unknown.
    """
    from lm_eval.tasks import TaskManager

    include = str(folder) if folder else None
    if include:
        own = TaskManager(include_path=include, include_defaults=False)
        if set(names) <= set(own.all_tasks):
            return own
    every = TaskManager(include_path=include)
    known = set(every.all_tasks)
    if unknown := [name for name in names if name not in known]:
        raise _unknown(unknown, sorted(known))
    return every


def _unknown(names: list[str], known: list[str]) -> BadRecipe:
    near = {name: difflib.get_close_matches(name, known, n=3) for name in names}
    advice = [
        f"write {' or '.join(map(repr, found))} for {name!r}" if found else f"correct {name!r}"
        for name, found in near.items()
    ]
    return BadRecipe(
        WHERE,
        f"{', '.join(map(repr, names))}, which lm-evaluation-harness does not have",
        "names that `lm-eval ls tasks` lists, or of files in evaluation.benchmark_folder",
        "; ".join(advice),
    )


if __name__ == "__main__":
    run(main, CheckBenchmarksJob)
