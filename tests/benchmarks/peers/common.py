"""What the scripts here share. They run in environments without Burnish: no import of it."""

from __future__ import annotations

import itertools
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

IGNORED = -100


def read_spec() -> dict[str, Any]:
    """The specification that the command line names; see `language_data.prepare`."""
    return json.loads(Path(sys.argv[1]).read_text())


def read_examples(file: str) -> list[dict[str, list[int]]]:
    """Token ids and labels of each example."""
    with np.load(file, allow_pickle=False) as stored:
        ids, loss_mask, starts = (stored[name] for name in ("ids", "loss_mask", "starts"))
    labels = np.where(loss_mask == 1, ids, IGNORED)
    spans = [slice(*pair) for pair in itertools.pairwise(starts)]
    return [{"input_ids": ids[span].tolist(), "labels": labels[span].tolist()} for span in spans]


def load_base(spec: dict[str, Any], **options: Any) -> Any:
    """The base as it trains: in the precision of the passes, or in 4 bits.

    Args:
        spec: Names folder, precision and quantization.
        **options: Passed on.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = torch.bfloat16 if spec["precision"] == "bf16" else torch.float32
    if spec["quantization"] == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        options["device_map"] = {"": 0}
    return AutoModelForCausalLM.from_pretrained(spec["base"], dtype=dtype, **options)


def lora(spec: dict[str, Any]) -> Any:
    """The adapter's settings."""
    from peft import LoraConfig

    return LoraConfig(
        r=spec["rank"],
        lora_alpha=spec["alpha"],
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def arguments(spec: dict[str, Any]) -> dict[str, Any]:
    """Settings that all trainers based on transformers' Trainer share."""
    return {
        "output_dir": str(Path(spec["scratch"]) / "out"),
        "num_train_epochs": spec["epochs"],
        "learning_rate": spec["learning_rate"],
        "weight_decay": spec["weight_decay"],
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "max_grad_norm": 1.0,
        "seed": spec["seed"],
        "bf16": spec["precision"] == "bf16",
        "use_cpu": spec["device"] == "cpu",
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "logging_steps": 1,
        "optim": "adamw_torch" if spec["device"] == "cpu" else "adamw_torch_fused",
        "report_to": "none",
        "disable_tqdm": True,
    }


class Clock(TrainerCallback):
    """Notes after each optimizer step how long it has been, and how many real tokens went in.

    Attributes:
        samples: For each step: number, seconds since the training began, real tokens, processor
            seconds.
        seconds: Of the whole training call, with the evaluation at the end of each epoch.
        cpu_seconds: The same of the processor, all threads together.
        model: That was trained.
    """

    def __init__(self, pad: int) -> None:
        self.samples: list[tuple[int, float, int, float]] = []
        self.seconds, self.cpu_seconds, self.model = 0.0, 0.0, None
        self._pad, self._tokens = pad, 0
        self._began, self._cpu_began = 0.0, 0.0

    def counted(self, step: Any) -> Any:
        """A `training_step` that counts the tokens it is given, padding left out."""

        def counting(model: Any, inputs: dict[str, Any], *rest: Any, **options: Any) -> Any:
            self._tokens += int((inputs["input_ids"] != self._pad).sum())
            return step(model, inputs, *rest, **options)

        return counting

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start."""
        self._began, self._cpu_began = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the step."""
        seconds = time.perf_counter() - self._began
        cpu = time.process_time() - self._cpu_began
        self.samples.append((state.global_step, seconds, self._tokens, cpu))

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Stop."""
        self.seconds, self.model = time.perf_counter() - self._began, model
        self.cpu_seconds = time.process_time() - self._cpu_began


def run(trainer: Any, spec: dict[str, Any]) -> None:
    """Train, and say what was found."""
    clock = Clock(spec["pad"])
    trainer.add_callback(clock)
    trainer.training_step = clock.counted(trainer.training_step)
    trainer.train()
    report(clock, spec)


def report(clock: Clock, spec: dict[str, Any], **facts: Any) -> None:
    """Evaluate, outside of what is timed, and print the facts as the last line.

    Args:
        clock: After the training.
        spec: Names the examples.
        **facts: Said too.
    """
    model = clock.model
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**20
    found = {
        "samples": clock.samples,
        "seconds": clock.seconds,
        "cpu_seconds": clock.cpu_seconds,
        "trained_parameters": trained,
        "peak_mb": round(peak),
        "attention": model.config._attn_implementation,
        "eval_loss": loss_of(model, read_examples(spec["validation"]), spec["precision"]),
        **facts,
    }
    print("\n" + json.dumps(found))


@torch.no_grad()
def loss_of(model: Any, examples: list[dict[str, list[int]]], precision: str) -> float:
    """Mean loss (nats) of a target token, each example by itself: no packing, no padding."""
    model.eval()
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for example in examples:
        ids, labels = (torch.tensor([example[name]]) for name in ("input_ids", "labels"))
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(input_ids=ids.to(device), use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[0, :-1].float(),
            labels[0, 1:].to(device),
            ignore_index=IGNORED,
            reduction="sum",
        )
        total += float(loss)
        count += int((labels[0, 1:] != IGNORED).sum())
    return total / count
