"""Real tokens per second of LoRA fine-tuning a language model on the CPU, against what others do.

    python -m tests.benchmarks.language_training [--shapes tiny] [--parts training] [--peers FOLDER]

Every run is a fresh process with the same weights, the same token ids, the same precision, and
about as many real tokens an optimizer step. They run in turns. Loss on held-out examples after the
same tokens must agree, or nothing is written. The others are installed on demand, see `peers`.

Parts: `training`: all tokens are targets, so nothing can be skipped; `chat`: two fifths are, as
with answers only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import measure
from tests.benchmarks.language_data import SHAPES, prepare
from tests.benchmarks.language_figures import OURS, SKIPPED_STEPS, Contender, figures
from tests.benchmarks.measure import Command
from tests.benchmarks.peers import install

ROUNDS = 3
PARTS = {"training": 1.0, "chat": 0.4}
"""For each part, the share of tokens that are targets."""
GOALS = {
    "tiny": {"Trainer": 2.5, "TRL, packed": 1.9, "LLaMA-Factory, neat packing": 1.3},
    # 1.3 times the best of them.
    "smollm2": {"Trainer": 1.3, "TRL, packed": 1.3, "LLaMA-Factory, neat packing": 1.3},
}
PEERS = Path(__file__).parent / "peers"


def main() -> None:
    """Measure, and write what was found."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    arguments.add_argument("--shapes", default="tiny,smollm2", help="Several by commas.")
    arguments.add_argument("--parts", default=",".join(PARTS), help="Several by commas.")
    arguments.add_argument("--peers", type=Path, default=install.FOLDER, help="Environments.")
    arguments.add_argument("--without", default="", help="Contenders to leave out, by semicolons.")
    given = arguments.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="language-training-"))
    try:
        report = run(
            folder,
            given.shapes.split(","),
            given.parts.split(","),
            given.rounds,
            *find_contenders(given.peers, set(filter(None, given.without.split(";")))),
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report = with_earlier(report, measure.RESULTS / "language_training.json")
    title = "Fine-tuning a language model on the CPU"
    measure.write("language_training", title, report, page(report))


def run(
    folder: Path,
    shapes: Sequence[str],
    parts: Sequence[str],
    rounds: int,
    contenders: Mapping[str, Contender],
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """All measurements.

    Args:
        folder: For models, examples and what is trained.
        shapes: Names in `SHAPES`.
        parts: Names in `PARTS`.
        rounds: That count.
        contenders: Ours among them.
        left_out: For each contender that is not there, why.
    """
    code = measure.copy_code(folder)
    # Ours is run from the copy; the module that makes its job lies here.
    code["PYTHONPATH"] += f":{measure.ROOT}"
    load = measure.wait_for_quiet()
    found = []
    for name in shapes:
        shape = SHAPES[name]
        for part in parts:
            spec = prepare(shape, folder / name, PARTS[part])
            runs = measure.alternate(
                {
                    who: commands(contender, spec, folder / f"{name}-{part}", who, code)
                    for who, contender in contenders.items()
                },
                rounds,
                folder,
            )
            how = {"date": measure.machine()["date"], "rounds": rounds, "load_average": load}
            found.append({"shape": name, "part": part, **how, **figures(spec, contenders, runs)})
    return {
        "left_out": dict(left_out),
        "versions": peer_versions(contenders),
        "comparisons": found,
    }


def with_earlier(report: dict[str, Any], file: Path) -> dict[str, Any]:
    """The report, with what was compared before and was not compared again.

    Args:
        report: From `run`.
        file: What was written before.
    """
    before = json.loads(file.read_text())["comparisons"] if file.is_file() else []
    new = {(each["shape"], each["part"]) for each in report["comparisons"]}
    kept = [each for each in before if (each["shape"], each["part"]) not in new]
    order = [(shape, part) for shape in SHAPES for part in PARTS]
    every = sorted(
        [*kept, *report["comparisons"]],
        key=lambda each: order.index((each["shape"], each["part"])),
    )
    return report | {"comparisons": every}


# Who takes part


def find_contenders(folder: Path, without: set[str]) -> tuple[dict[str, Contender], dict[str, str]]:
    """All that can be had, and why the others cannot.

    Args:
        folder: Of the environments.
        without: Names that are not wanted.
    """
    here = Path(sys.executable)
    found = {OURS: Contender(here, ("-m", "tests.benchmarks.ours_training"))}
    found["Trainer"] = Contender(here, (str(PEERS / "plain_trainer.py"),))
    makers: dict[str, tuple[Callable[[Path], Path], str, dict[str, Any]]] = {
        "TRL, packed": (install.trl, "trl_sft.py", TRL_PACKED),
        "TRL, defaults": (install.trl, "trl_sft.py", {"per_device_train_batch_size": 8}),
        "LLaMA-Factory, neat packing": (install.llama_factory, "llama_factory.py", NEAT_PACKING),
    }
    left_out = {}
    for name, (make, script, options) in makers.items():
        if name in without:
            left_out[name] = "not asked for"
            continue
        try:
            found[name] = Contender(make(folder), (str(PEERS / script),), options)
        except (subprocess.CalledProcessError, OSError) as error:
            left_out[name] = f"could not be installed ({error})"
    return {name: each for name, each in found.items() if name not in without}, left_out


TRL_PACKED = {
    "packing": True,
    "packing_strategy": "bfd",
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": False,
}
"""Rows of the longest example's length, two a step. One at a time: TRL lays the rows of a batch one
behind the other, and without FlashAttention the mask of twice the tokens is four times as large."""
NEAT_PACKING = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}


def commands(
    contender: Contender, spec: dict[str, Any], folder: Path, who: str, code: dict[str, str]
) -> Callable[[int], Command]:
    """What makes a contender's command for a round, in a folder of its own."""

    def command(number: int) -> Command:
        scratch = folder / f"{''.join(filter(str.isalnum, who))}-{number}"
        scratch.mkdir(parents=True, exist_ok=True)
        own = {"scratch": str(scratch), "options": contender.options}
        file = scratch / "spec.json"
        file.write_text(json.dumps({**spec, **own}))
        # Only ours may see Burnish: a folder named `tasks` must not come before theirs.
        environment = {key: value for key, value in code.items() if key != "PYTHONPATH"}
        environment["HF_DATASETS_CACHE"] = str(scratch / "datasets")
        if contender.script[0] == "-m":
            environment["PYTHONPATH"] = code["PYTHONPATH"]
        return Command([contender.python, *contender.script, file], environment)

    return command


def peer_versions(contenders: Mapping[str, Contender]) -> dict[str, dict[str, str]]:
    """What the others run on."""
    asked = {"TRL, packed": "trl", "LLaMA-Factory, neat packing": "llamafactory"}
    return {
        name: install.versions(contenders[who].python, (name, "torch", "transformers", "peft"))
        for who, name in asked.items()
        if who in contenders
    }


# The page


def page(report: dict[str, Any]) -> list[str]:
    """Tables and words."""
    words = [
        "Real tokens per second (padding is not counted), medians of fresh processes, in turns. "
        "Same weights, same token ids, same "
        "precision, LoRA on all linear layers without dropout, AdamW, about 2,000 real tokens a "
        f"step. *Steady*: without the first {SKIPPED_STEPS} steps, by its own "
        "progress. *Whole call*: the training call with the validation after it, without "
        "imports and without reading model and data. *Loss* is of held-out examples after "
        "training, which must agree.",
        *(f"{name}: left out, {why}." for name, why in report["left_out"].items()),
        *(
            f"{name} ran on "
            + ", ".join(f"{what} {version}" for what, version in found.items())
            + "."
            for name, found in report["versions"].items()
        ),
    ]
    for found in report["comparisons"]:
        words += section(found)
    return words


def section(found: dict[str, Any]) -> list[str]:
    """One comparison."""
    rows = []
    for who, one in found["contenders"].items():
        goal = GOALS.get(found["shape"], {}).get(who) if found["part"] == "training" else None
        ratio = found["ratios"].get(who)
        rows.append(
            (
                who,
                f"{one['steady']:,.0f}",
                ratio or "",
                f"{goal:g}: {'yes' if ratio >= goal else 'no'}" if goal else "",
                f"{one['whole_call']:,.0f}",
                found["whole_call_ratios"].get(who, ""),
                found["ratios_by_cpu"].get(who, ""),
                one["steps"],
                f"{statistics.median(one['eval_loss']):.3f}",
                f"{one['peak_mb']:,}",
                one["attention"],
            )
        )
    head = (
        "",
        "steady",
        "ours is times",
        "goal reached",
        "whole call",
        "ours is times",
        "steady, by processor time: ours is times",
        "steps",
        "loss",
        "peak MB",
        "attention",
    )
    words = [
        f"## {found['shape']}: {found['part']}",
        f"{found['date']}, {found['rounds']} rounds. "
        f"{found['tokens']:,} real tokens an epoch, {found['target_tokens']:,} of them targets, "
        f"{found['precision']}; lengths: median {found['median_length']:g}, longest "
        f"{found['longest_example']}. {found['disturbance'].capitalize()}.",
        measure.table(head, rows),
    ]
    return words


if __name__ == "__main__":
    main()
