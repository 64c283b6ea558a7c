"""Where the time of a training step goes on a GPU, by kernel:
`python -m tests.benchmarks.gpu_profile FOLDER [--shape llama-8b] [--kernels liger]`.

FOLDER holds the model that `gpu_language --folder FOLDER` made. A training as a run does it, in
this process, with torch's profiler on five of its steps.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from tasks.finetune import program as finetune_program
from tests.benchmarks.language_data import SHAPES, prepare
from tests.benchmarks.ours_training import make_job

FIRST, STEPS, TOP = 3, 5, 20


class Profile(TrainerCallback):
    """Profiles some steps of a training.

    Attributes:
        events: Time by kernel (on a CPU, by operation), once they are done.
    """

    def __init__(self) -> None:
        kind = torch.profiler.ProfilerActivity
        # Of a GPU its kernels only: the operations that start them are 100,000 a step.
        on = kind.CUDA if torch.cuda.is_available() else kind.CPU
        self._profiler = torch.profiler.profile(activities=[on], acc_events=True)
        self.events: Any = None

    def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Begin with the first of the steps."""
        if state.global_step == FIRST:
            self._profiler.start()

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """End after the last of them."""
        if state.global_step == FIRST + STEPS:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._profiler.stop()
            self.events = self._profiler.key_averages()


def main() -> None:
    """Train, and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--shape", default="llama-8b", choices=list(SHAPES))
    arguments.add_argument("--kernels", default="none", choices=("none", "liger"))
    given = arguments.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as scratch:
        spec = prepare(SHAPES[given.shape], given.folder) | {
            "device": device,
            "scratch": scratch,
            "options": {"kernels": given.kernels},
        }
        print(table(profile(spec), device))


def profile(spec: dict[str, Any]) -> Any:
    """Train as the job says; returns the profiler's averages by name."""
    job = make_job(spec)
    job.work.mkdir(parents=True)
    finetune_program.prepare(job.plan, job.training.seed)
    task = finetune_program.make_task(job)
    data = [task.examples(split, job.work / f"{split}.arrow") for split in ("train", "validation")]
    callback = Profile()
    trainer = task.trainer(task.model(), *data, [callback])
    trainer.train()
    return callback.events


def table(events: Any, device: str) -> str:
    """The kernels or operations that take the most time."""
    by = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    return events.table(sort_by=by, row_limit=TOP, max_name_column_width=70)


if __name__ == "__main__":
    main()
