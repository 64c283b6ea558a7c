"""Looks whether lm-evaluation-harness knows tasks by their names. Loads no torch.

Job: `tasks`: names; `folder` (optional): of task files (YAML) of one's own.
Result: nothing; a name that nobody knows is an error.
"""

from __future__ import annotations

import difflib
from typing import Any

from tasks.errors import BadRecipe
from tasks.programs.protocol import Reporter, run

WHERE = "evaluation.harness"


def main(job: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """See the module's description.

    Raises:
        BadRecipe: A task is not known.
    """
    find_tasks(job["tasks"], job.get("folder"))
    return {}


def find_tasks(names: list[str], folder: str | None) -> Any:
    """Where tasks are found; those of the library are looked through only if they are needed.

    Args:
        names: The tasks.
        folder: With task files of one's own.

    Returns:
        The harness's `TaskManager` that knows them.

    Raises:
        BadRecipe: It does not know one of them.
    """
    from lm_eval.tasks import TaskManager

    if folder:
        own = TaskManager(include_path=folder, include_defaults=False)
        if set(names) <= set(own.all_tasks):
            return own
    every = TaskManager(include_path=folder)
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
        f"{', '.join(map(repr, names))}, which the harness does not know",
        "names that `lm-eval ls tasks` lists, or of files in evaluation.harness_folder",
        "; ".join(advice),
    )


if __name__ == "__main__":
    run(main)
