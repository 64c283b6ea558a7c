"""Train as a run does: `python -m tests.benchmarks.ours_training SPEC`.

The job is made of the contracts' own models, as `tasks.finetune.step` makes it. The last line
printed is what `peers.common.report` prints of the others.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tasks.contracts.jobs import FinetuneJob, FinetuneResult, PinnedBase, TokenShard
from tasks.contracts.plan import Plan
from tasks.contracts.recipe_training import LoraRecipe, TrainingRecipe
from tasks.runtime.run_program import run_program


def main() -> None:
    """Train and report."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    watch = Watch()
    result = run_program(
        "tasks.finetune.program",
        make_job(spec),
        FinetuneResult,
        scratch=Path(spec["scratch"]) / "program",
        on_progress=watch,
    )
    found = {
        "samples": watch.samples,
        "seconds": watch.seconds,
        "cpu_seconds": watch.cpu_seconds,
        "trained_parameters": result.trained_parameters,
        "peak_mb": round(watch.peak_mb),
        "attention": spec["options"].get("attention", "packed"),
        "eval_loss": result.metrics["loss"],
        "steps": result.steps,
        "warnings": result.warnings,
        "progress": watch.lines[-5:],
    }
    print("\n" + json.dumps(found))


def make_job(spec: dict[str, Any]) -> FinetuneJob:
    """The job of `tasks.finetune.program`.

    Args:
        spec: From `language_data.prepare`, with a folder for `scratch` and, in `options`, fields
            of `Plan` that are other than here, and `micro_batch_tokens`.
    """
    folder, options = Path(spec["scratch"]), dict(spec["options"])
    device = spec["device"]
    micro_batch_tokens = options.pop("micro_batch_tokens", 0)
    plan = {
        "device": device,
        "precision": spec["precision"],
        "attention": "packed",
        "optimizer": "adamw_torch_fused" if device == "cuda" else "adamw_torch",
        "packing": True,
        **options,
    }
    training = TrainingRecipe(
        epochs=spec["epochs"],
        batch_size=spec["batch"],
        learning_rate=spec["learning_rate"],
        schedule="linear",
        warmup=0.0,
        weight_decay=spec["weight_decay"],
        max_length=spec["longest"],
        precision=spec["precision"],
        best_by="loss",
        seed=spec["seed"],
    )
    return FinetuneJob(
        task="completion",
        base=spec["base"],
        base_pin=PinnedBase(uri=spec["base"], digest="0" * 64),
        tokenizer=spec["base"],
        shards=(TokenShard(digest=spec["shard"], tokens=spec["tokens"]),),
        keep_file=spec["keep"],
        labels=(),
        head_modules=(),
        lora=LoraRecipe(r=spec["rank"], alpha=spec["alpha"], dropout=0.0),
        quantization=spec["quantization"],
        training=training,
        plan=Plan.model_validate(plan),
        ship="adapter",
        micro_batch_examples=0,
        halvings=0,
        micro_batch_tokens=micro_batch_tokens,
        max_micro_batch_tokens=0,
        tight_memory=False,
        work=folder / "work",
        resume_from=None,
        stop_seconds=15.0,
        out=folder / "model",
        check_out=folder / "check" / "examples.parquet",
    )


class Watch:
    """Notes the program's progress lines as they come.

    Attributes:
        samples: Of each line about steps: number, seconds since the training began, real tokens,
            processor seconds.
        seconds: From there to the last epoch's evaluation.
        cpu_seconds: The same of the processor, all threads together.
        peak_mb: The most memory in the log, in MiB: of the tensors on a GPU, or of the process.
        lines: All of them.
    """

    def __init__(self) -> None:
        self.samples: list[tuple[int, float, float, float]] = []
        self.seconds, self.cpu_seconds, self.peak_mb = 0.0, 0.0, 0.0
        self.lines: list[dict[str, Any]] = []
        self._began: tuple[float, float] | None = None

    def __call__(self, line: dict[str, Any]) -> None:
        """Take one line."""
        now = time.perf_counter()
        self.lines.append(line)
        used_mb = line.get("gpu_memory_mb") or line.get("process_memory_mb") or 0.0
        self.peak_mb = max(self.peak_mb, used_mb * 1e6 / 2**20)
        if line.get("stage") != "training":
            return
        used = program_seconds()
        if self._began is None:
            self._began = now, used
        since, cpu = now - self._began[0], used - self._began[1]
        if "tokens_per_second" in line:
            # The program's own clock began when that first line was sent.
            self.samples.append((line["step"], since, line["tokens_per_second"] * since, cpu))
        if "eval_loss" in line:
            self.seconds, self.cpu_seconds = since, cpu


def program_seconds() -> float:
    """What the programs that this process started have used of the processor so far."""
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(each.user + each.system for each in times)


if __name__ == "__main__":
    main()
