"""Fine-tuning a large language model in 4 bits on one GPU, against what others do there.

    python -m tests.benchmarks.gpu_language [--shape llama-8b] [--rounds 1]

A Llama of 8 billion random weights, nf4 with double quantization, LoRA on all linear layers,
examples of log-normal lengths up to 2,048 tokens. For each way to train: real tokens per second,
the most memory, and the share of what the card's matrix units give in a plain bf16 product. All
run in this Python; what is missing is said first. The model takes 16 GB of disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import language_figures, language_training, measure
from tests.benchmarks.language_data import SHAPES, Shape, prepare
from tests.benchmarks.language_figures import OURS, Contender
from tests.benchmarks.language_training import PEERS
from tests.benchmarks.measure import Timed

ROUNDS = 1
NEEDED = (
    *("torch", "transformers", "peft", "accelerate", "datasets", "safetensors"),
    *("pyarrow", "orjson", "pydantic", "psutil", "numpy"),
)
FASTER = {"flash_attn": "flash-attn", "liger_kernel": "liger-kernel"}
"""What TRL is faster with, by module; ours takes the second."""
LOSS_TOLERANCE = 0.01
MATRIX = 8192
_CEILING = """
import sys, time, torch
size, device = int(sys.argv[1]), sys.argv[2]
dtype = torch.bfloat16 if device == "cuda" else torch.float32
one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
for _ in range(3): one @ other
wait(); began = time.perf_counter()
for _ in range(10): one @ other
wait(); print(10 * 2 * size**3 / (time.perf_counter() - began))
"""


def main() -> None:
    """Measure, and write what was found."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--shape", default="llama-8b", choices=list(SHAPES))
    arguments.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    arguments.add_argument("--quantization", choices=("none", "nf4"), help="Else the shape's.")
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    arguments.add_argument("--examples", type=int, help="Else as many as the shape has.")
    arguments.add_argument("--folder", type=Path, help="For the model, which is kept there.")
    arguments.add_argument("--name", default="gpu_language", help="Of the results' files.")
    arguments.add_argument("--only", default="", help="Contenders, separated by semicolons.")
    given = arguments.parse_args()
    shape = SHAPES[given.shape]
    changes = {"quantization": given.quantization, "examples": given.examples}
    shape = dataclasses.replace(shape, **{name: to for name, to in changes.items() if to})
    lacking = missing(shape)
    if lacking:
        sys.exit(f"wheels are missing for {sys.executable}: {', '.join(lacking)}")
    contenders, left_out = find_contenders(shape, given.device)
    chosen = set(filter(None, given.only.split(";"))) or set(contenders)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="gpu-language-"))
    try:
        report = run(
            folder,
            shape,
            given.device,
            given.rounds,
            {who: each for who, each in contenders.items() if who in chosen},
        )
    finally:
        if not given.folder:
            shutil.rmtree(folder, ignore_errors=True)
    report["left_out"] = left_out
    measure.write(given.name, f"Fine-tuning {given.shape} on one GPU", report, page(report))


def missing(shape: Shape) -> list[str]:
    """What must be installed first, by the names of the wheels."""
    needed = [*NEEDED, *(["bitsandbytes"] if shape.quantization == "nf4" else [])]
    return [name for name in needed if util.find_spec(name) is None]


def find_contenders(shape: Shape, device: str) -> tuple[dict[str, Contender], dict[str, str]]:
    """All that can be had here, and why the others cannot.

    Args:
        shape: Says how many rows of its longest examples make a step.
        device: `cuda` or `cpu`.
    """
    here = Path(sys.executable)
    ours = (here, ("-m", "tests.benchmarks.ours_training"))
    found = {OURS: Contender(*ours)}
    left_out = {}
    if device == "cuda":
        found["Burnish, checkpointing"] = Contender(*ours, {"checkpointing": True})
        if util.find_spec("liger_kernel"):
            found["Burnish, liger"] = Contender(*ours, {"kernels": "liger"})
    # As many rows as make about the same tokens a step.
    mean = shape.median * np.exp(shape.sigma**2 / 2)
    rows = max(1, round(shape.batch * mean / shape.longest))
    trl = {"packing": True, "packing_strategy": "bfd", "per_device_eval_batch_size": 1}
    if util.find_spec("flash_attn"):
        trl["attention"] = "flash_attention_2"
    if util.find_spec("liger_kernel"):
        trl["use_liger_kernel"] = True
    ways = {
        "TRL, packed": {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": rows,
            "gradient_checkpointing": False,
        },
        "TRL, packed, checkpointing": {
            "per_device_train_batch_size": rows,
            "gradient_checkpointing": True,
        },
    }
    for name, own in ways.items():
        if util.find_spec("trl"):
            found[name] = Contender(here, (str(PEERS / "trl_sft.py"),), {**trl, **own})
        else:
            left_out[name] = "the wheel trl is missing"
    found["Trainer"] = Contender(
        here, (str(PEERS / "plain_trainer.py"),), {"gradient_checkpointing": device == "cuda"}
    )
    absent = [wheel for module, wheel in FASTER.items() if util.find_spec(module) is None]
    if absent:
        left_out["faster kernels"] = f"the wheels {', '.join(absent)} are missing"
    return found, left_out


def run(
    folder: Path, shape: Shape, device: str, rounds: int, contenders: Mapping[str, Contender]
) -> dict[str, Any]:
    """All measurements.

    Args:
        folder: For the model, the examples and what is trained.
        shape: What is trained.
        device: `cuda` or `cpu`.
        rounds: That count.
        contenders: Who trains; one that fails is reported with its last words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="gpu-language-runs-"))
    try:
        code = measure.copy_code(scratch)
        code["PYTHONPATH"] += f":{measure.ROOT}"
        top = ceiling(MATRIX if device == "cuda" else 512, device)
        spec = {**prepare(shape, folder), "device": device}
        runs: dict[str, list[Timed]] = {who: [] for who in contenders}
        failed: dict[str, str] = {}
        for number in range(rounds):
            for who in [who for who in contenders if who not in failed]:
                command = language_training.commands(contenders[who], spec, scratch, who, code)
                try:
                    runs[who].append(measure.timed(command(number), scratch, number))
                    found = language_figures.last_line(runs[who][-1])
                except (RuntimeError, ValueError) as error:
                    found = failed[who] = str(error).strip()[-1000:]
                # A GPU is lent by the minute: what is known is said at once.
                print(f"{who}: {found}", flush=True)
        done = {who: each for who, each in runs.items() if who not in failed}
        return {
            "rounds": rounds,
            "card": card(device),
            "failed": failed,
            "shape": dataclasses.asdict(shape),
            **figures(spec, shape, contenders, done, top),
        }
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def figures(
    spec: dict[str, Any],
    shape: Shape,
    contenders: Mapping[str, Contender],
    runs: Mapping[str, Sequence[Timed]],
    top: float,
) -> dict[str, Any]:
    """Medians, and the share of the ceiling.

    If the contenders did not do the same, the report says so in `unequal`.
    """
    facts = {who: [language_figures.last_line(once) for once in each] for who, each in runs.items()}
    try:
        language_figures.same(spec, contenders, facts, LOSS_TOLERANCE)
        unequal = ""
    except RuntimeError as error:
        unequal = str(error)
    each = {who: language_figures.summary(spec, contenders[who], facts[who]) for who in runs}
    with np.load(spec["train"], allow_pickle=False) as stored:
        lengths = np.diff(stored["starts"])
    per_token = operations(shape, lengths)
    for one in each.values():
        # Where a run was too short for a steady rate, the whole call's stands in.
        one["rate"] = one["steady"] or one["whole_call"]
        one["share_of_ceiling"] = round(one["rate"] * per_token / top, 4)
    others = {who: one["rate"] for who, one in each.items() if not who.startswith(OURS)}
    return {
        "unequal": unequal,
        "tokens": spec["train_tokens"],
        "longest_example": spec["longest_example"],
        "median_length": spec["median_length"],
        "ceiling_teraflops": round(top / 1e12, 1),
        "gigaflop_a_token": round(per_token / 1e9, 3),
        "contenders": each,
        "ratio_to_best_other": round(
            max(one["rate"] for who, one in each.items() if who.startswith(OURS))
            / max(others.values()),
            3,
        )
        if others and len(others) < len(each)
        else None,
    }


def operations(shape: Shape, lengths: np.ndarray) -> float:
    """Floating-point operations of training on a real token, mean over examples.

    2 a weight forwards, and as many backwards, for the base is frozen (6 for the adapter's);
    4 x hidden a layer for each token that a token sees, thrice. What is computed twice (activations
    under checkpointing) counts once, and padding not at all.

    Args:
        shape: The model.
        lengths: Of the examples.
    """
    size = shape.hidden // shape.heads
    between = [
        (shape.hidden, shape.hidden),
        (shape.hidden, shape.kv_heads * size),
        (shape.hidden, shape.kv_heads * size),
        (shape.hidden, shape.hidden),
        *[(shape.hidden, shape.intermediate)] * 3,
    ]
    weights = shape.layers * sum(a * b for a, b in between) + shape.hidden * shape.vocabulary
    adapter = shape.layers * shape.rank * sum(a + b for a, b in between)
    seen = float((lengths.astype(float) ** 2).sum() / 2 / lengths.sum())
    return 4.0 * weights + 6.0 * adapter + 3 * 4.0 * shape.hidden * shape.layers * seen


def ceiling(size: int, device: str) -> float:
    """Floating-point operations a second of a plain product of two square matrices (bf16 on a
    GPU), in a process of its own."""
    words = [sys.executable, "-c", _CEILING, str(size), device]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def card(device: str) -> str:
    """The GPU's name, or that there was none."""
    if device == "cpu":
        return "no GPU: a trial of this script"
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def page(report: dict[str, Any]) -> list[str]:
    """Tables and words."""
    shape = report["shape"]
    rows = [
        (
            who,
            f"{one['rate']:,.0f}",
            f"{one['share_of_ceiling']:.1%}",
            f"{one['peak_mb'] / 1024:,.1f}",
            f"{statistics.median(one['eval_loss']):.3f}",
            one["attention"],
        )
        for who, one in report["contenders"].items()
    ]
    ratio = report["ratio_to_best_other"]
    return [
        f"{report['card']}. A Llama of {shape['layers']} layers of {shape['hidden']}, random "
        f"weights, {shape['quantization']}, {shape['precision']}, LoRA of rank {shape['rank']} on "
        f"all linear layers; {report['tokens']:,} real tokens, lengths: median "
        f"{report['median_length']:g}, longest {report['longest_example']}; {shape['batch']} "
        f"examples a step. Medians of {report['rounds']} fresh processes each, in turns.",
        measure.table(
            ("", "real tokens/s", "share of ceiling", "peak GiB", "loss", "attention"), rows
        ),
        f"The ceiling is {report['ceiling_teraflops']:g} TFLOP/s: what a product of two matrices "
        f"of {MATRIX:,} x {MATRIX:,} in bf16 reaches here. A real token needs "
        f"{report['gigaflop_a_token']:g} GFLOP: 4 a weight of the base, 6 a weight of the adapter, "
        "12 x hidden x layers for each token seen; padding and what is computed twice count "
        "nothing.",
        *([f"**Not comparable**: {report['unequal']}"] if report["unequal"] else []),
        *([f"The best of ours is {ratio:g} times as fast as the best other."] if ratio else []),
        *(f"{who} failed: {why}" for who, why in report["failed"].items()),
        *(f"{who}: left out, {why}." for who, why in report.get("left_out", {}).items()),
    ]


if __name__ == "__main__":
    main()
