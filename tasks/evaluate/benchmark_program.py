"""Run tasks of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness) on a
language model, loaded the way a consumer loads it.

Job: `BenchmarkJob`. Task files may name their data by paths below their folder. The result holds
the metrics of each task (for a group, also of its subtasks), such as `acc`, `acc_stderr` or
`exact_match/strict-match`.

Programs have no network access: data sets from the Hub must be in the machine's cache.
"""

from __future__ import annotations

import os
from typing import Any

from transformers.utils import logging

from tasks.chat.stop_tokens import training_tokenizer
from tasks.contracts.jobs import BenchmarkJob, BenchmarkResult
from tasks.evaluate.benchmark_check_program import find_tasks, missing_data
from tasks.evaluate.released_model import load_language_model
from tasks.runtime.program import Reporter, run


def main(job: BenchmarkJob, reporter: Reporter) -> BenchmarkResult:
    """See the module's description.

    Raises:
        BadModel: The model cannot be loaded.
        BadRecipe: A task is unknown.
        NotFound: A task's data is not on this machine.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    names = list(job.tasks)
    reporter.progress(always=True, stage="looking for tasks")
    if job.folder:
        os.chdir(job.folder)
    manager = find_tasks(names, job.folder)
    reporter.progress(always=True, stage="loading model")
    model = load_language_model(job).eval()
    model = model.get_base_model() if job.kind == "adapter" else model
    tokenizer = training_tokenizer(job.tokenizer or job.model)
    reporter.progress(always=True, stage="running benchmarks")
    options = {
        "model": HFLM(pretrained=model, tokenizer=tokenizer, batch_size=job.batch_size),
        "tasks": names,
        "task_manager": manager,
        "limit": job.limit or None,
        "apply_chat_template": job.chat and tokenizer.chat_template is not None,
        "log_samples": False,
        "bootstrap_iters": 1000,
    }
    try:
        found = lm_eval.simple_evaluate(**options)
    except (ConnectionError, FileNotFoundError) as error:
        raise missing_data(names, error) from None
    return BenchmarkResult(
        results={name: _metrics(values) for name, values in sorted(found["results"].items())},
        examples={name: counts["effective"] for name, counts in sorted(found["n-samples"].items())},
    )


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """Metrics by name, followed by a slash and the filter unless that is `none`."""
    found = {}
    for name, value in values.items():
        metric, comma, filter_ = name.partition(",")
        if comma and isinstance(value, int | float):
            found[metric if filter_ == "none" else f"{metric}/{filter_}"] = float(value)
    return found


if __name__ == "__main__":
    run(main, BenchmarkJob)
