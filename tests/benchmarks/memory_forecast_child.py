"""One condition of `memory_forecast`, in a process of its own:
`python -m tests.benchmarks.memory_forecast_child forecast|measure SPEC`.

`SPEC` is JSON; the last line printed is what was found, as JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from tasks.contracts.jobs import FinetuneJob, PinnedBase, TokenShard
from tasks.contracts.plan import Plan
from tasks.contracts.recipe_training import LoraRecipe, TrainingRecipe

LONGEST, STEPS = 256, 2
DROPOUT = 0.05


def main() -> None:
    """Do what the arguments say."""
    what, spec = sys.argv[1], json.loads(sys.argv[2])
    print("\n" + json.dumps({"forecast": forecast, "measure": measure}[what](spec)))


def forecast(spec: dict[str, Any]) -> dict[str, Any]:
    """Forecast bytes by part."""
    import torch

    from tasks.plan.memory_trace import Setting, peak

    job = make_job(spec, "cuda" if torch.cuda.is_available() else "cpu", {})
    setting = Setting(
        base=Path(spec["base"]),
        lora=job.lora,
        quantization=spec["quantization"],
        plan=job.plan,
        checkpointing=spec["checkpointing"],
        tokens=spec["tokens"],
        longest=spec.get("longest", LONGEST),
        target_share=1.0,
        accumulates=False,
    )
    return {"parts": peak(setting)}


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Bytes at the fullest moment of training, and of reading the model."""
    # All that is loaded on the way, so that it is not taken for the model's.
    import accelerate  # noqa: F401
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401
    import torch

    from tasks.finetune import program as finetune_program
    from tasks.training import allocator
    from tasks.training.language import Language, LanguageTrainer

    cuda = torch.cuda.is_available()
    work = Path(spec["work"])
    shutil.rmtree(work, ignore_errors=True)
    (work / "work").mkdir(parents=True)
    job = make_job(spec, "cuda" if cuda else "cpu", write_tokens(spec, work))
    finetune_program.prepare(job.plan, 1)
    if spec.get("tight"):
        allocator.tighten()
    task = Language(job)
    examples = [task.examples(split, work / f"{split}.arrow") for split in ("train", "validation")]
    memory = _OnGPU() if cuda else _Resident()
    reading: list[int] = []
    training_step = LanguageTrainer.training_step

    def first_notes_what_reading_took(trainer: Any, *args: Any, **options: Any) -> Any:
        if not reading:
            reading.append(memory.peak())
            memory.forget()
        return training_step(trainer, *args, **options)

    LanguageTrainer.training_step = first_notes_what_reading_took
    finetune_program.train_model(job, task, *examples, _Nobody())
    return {"peak": memory.peak(), "reading": reading[0], "cuda": cuda}


class _Resident:
    """Resident memory of this process, in bytes above what it was at first."""

    def __init__(self) -> None:
        self._base = self._read("VmRSS")
        self.forget()

    def peak(self) -> int:
        return self._read("VmHWM") - self._base

    def forget(self) -> None:
        """Linux: the highest value starts anew."""
        Path("/proc/self/clear_refs").write_text("5")

    @staticmethod
    def _read(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


class _OnGPU:
    """What torch's allocator has given out, in bytes."""

    def peak(self) -> int:
        import torch

        return torch.cuda.max_memory_allocated()

    def forget(self) -> None:
        import torch

        torch.cuda.reset_peak_memory_stats()


class _Nobody:
    """A reporter that nobody listens to."""

    stopping = False

    def progress(self, **_: Any) -> bool:
        return True

    def advance(self) -> None:
        pass

    def check_stop(self) -> None:
        pass


def make_job(spec: dict[str, Any], device: str, data: dict[str, Any]) -> FinetuneJob:
    """The job of `tasks.finetune.program`.

    Args:
        spec: The condition.
        device: `cpu` or `cuda`.
        data: From `write_tokens`; empty if the data do not matter.
    """
    longest = spec.get("longest", LONGEST)
    plan = Plan(
        device=device,
        precision=spec.get("precision", "bf16"),
        attention="packed",
        optimizer="adamw_torch_fused" if device == "cuda" else "adamw_torch",
        packing=True,
        checkpointing=spec["checkpointing"],
    )
    training = TrainingRecipe(
        epochs=1, batch_size=spec["tokens"] // longest, max_length=longest, best_by="loss"
    )
    work = Path(spec.get("work", "."))
    return FinetuneJob(
        task="completion",
        base=spec["base"],
        base_pin=PinnedBase(uri=spec["base"], digest="0" * 64),
        tokenizer=spec["base"],
        **{"shards": (), "keep_file": work / "keep.npz"} | data,
        labels=(),
        head_modules=(),
        lora=LoraRecipe(dropout=spec.get("dropout", DROPOUT)),
        quantization=spec["quantization"],
        training=training,
        plan=plan,
        ship="merged",
        micro_batch_examples=0,
        halvings=0,
        micro_batch_tokens=spec["tokens"],
        max_micro_batch_tokens=0,
        tight_memory=False,
        work=work / "work",
        resume_from=None,
        stop_seconds=15.0,
        out=work / "out",
        check_out=work / "check" / "examples.parquet",
    )


def write_tokens(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Examples of equal length, all of whose tokens are targets, as `tokenize_language` writes
    them: enough for a few steps, and one for validation."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    longest = spec.get("longest", LONGEST)
    count = spec["tokens"] // longest * STEPS
    types = {
        "row": pa.uint32(),
        "side": pa.uint8(),
        "hash_hi": pa.uint64(),
        "hash_lo": pa.uint64(),
        "input_ids": pa.list_(pa.int32()),
        "loss_mask": pa.list_(pa.uint8()),
        "length": pa.int32(),
        "truncated": pa.bool_(),
    }
    rows = [
        {
            "row": number,
            "side": 0,
            "hash_hi": number,
            "hash_lo": number,
            "input_ids": [(7 * number + place) % 1000 for place in range(longest)],
            "loss_mask": [0] + [1] * (longest - 1),
            "length": longest,
            "truncated": False,
        }
        for number in range(count + 1)
    ]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(types)), folder / "tokens.parquet")
    np.savez(folder / "keep.npz", all=np.array([1] * count + [2], np.uint8))
    return {
        "shards": (TokenShard(digest="all", tokens=folder / "tokens.parquet"),),
        "keep_file": folder / "keep.npz",
    }


if __name__ == "__main__":
    main()
