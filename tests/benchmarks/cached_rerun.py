"""What a rerun costs where nothing has changed: the whole `burnish retrain` process.

    python -m tests.benchmarks.cached_rerun

A first run of the shipped recipe fills a store; then the same command is run again and again, in
turns with a Prefect flow of as many tasks that do nothing. Their difference is what Burnish adds to
Prefect. Once against a running server, once with the server that Prefect starts for each run.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks import measure
from tests.benchmarks.measure import Command, Timed
from tests.doubles.prefect import PrefectServer

ROUNDS = 7
TOTAL_GOAL = 5.0
OURS_GOAL = 1.0
TRIVIAL = Path(__file__).with_name("trivial_flow.py")
IMPORTS = {
    "import prefect": "import prefect",
    "import flows.retrain": "import flows.cli, flows.retrain",
}


def main() -> None:
    """Measure both ways, and write what was found."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = arguments.parse_args().rounds
    folder = Path(tempfile.mkdtemp(prefix="cached-rerun-"))
    try:
        report = run(folder, rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    measure.write("cached_rerun", "A rerun where nothing has changed", report, page(report))


def run(folder: Path, rounds: int) -> dict[str, Any]:
    """All measurements."""
    code = measure.copy_code(folder)
    home = folder / "server"
    home.mkdir()
    with PrefectServer(home) as server:
        running = {**code, **server.environment}
        print("the first run fills the store", flush=True)
        first = measure.timed(retrain(folder, running), folder)
        tasks = cached_tasks(measure.timed(retrain(folder, running), folder))
        load = measure.wait_for_quiet()
        with_server = measure.alternate(contenders(folder, running, tasks), rounds, folder)
        imports = measure.alternate(
            {name: importing(code, statement) for name, statement in IMPORTS.items()},
            rounds,
            folder,
        )
    embedded = {**code, "PREFECT_HOME": str(folder / "embedded"), "PREFECT_API_URL": ""}
    # Creates the database, which happens once in the life of a machine.
    measure.timed(trivial(embedded, tasks), folder)
    alone = measure.alternate(contenders(folder, embedded, tasks), rounds, folder)
    return {
        "rounds": rounds,
        "load_average": load,
        "disturbance": measure.disturbance([with_server, alone]),
        "first_run_seconds": round(first.seconds, 1),
        "tasks": tasks,
        "goals": {"with_server": TOTAL_GOAL, "ours": OURS_GOAL},
        "with_server": summary(with_server),
        "embedded": summary(alone),
        "imports": {name: round(measure.median(each), 3) for name, each in imports.items()},
        "single": {
            "with_server": measure.as_lists(with_server),
            "embedded": measure.as_lists(alone),
            "imports": measure.as_lists(imports),
        },
    }


def retrain(folder: Path, environment: dict[str, str]) -> Command:
    """The command under test: the shipped recipe, with store and releases in our folder."""
    words = [measure.burnish(), "retrain", "news", "--store", folder / "store"]
    words += ["--set", f"publish.targets=[{folder / 'releases'}]"]
    return Command(words, environment)


def trivial(environment: dict[str, str], tasks: int) -> Command:
    """What it is held against."""
    return Command([sys.executable, TRIVIAL, str(tasks)], environment)


def contenders(folder: Path, environment: dict[str, str], tasks: int) -> dict[str, Any]:
    """Both, for `measure.alternate`."""
    return {
        "rerun": lambda _: retrain(folder, environment),
        "trivial flow": lambda _: trivial(environment, tasks),
    }


def importing(environment: dict[str, str], statement: str) -> Any:
    """A process that only imports."""
    return lambda _: Command([sys.executable, "-c", statement], environment)


def cached_tasks(rerun: Timed) -> int:
    """How many tasks the rerun had, all of which must be cached.

    Raises:
        RuntimeError: Something was done anew.
    """
    ends = [line for line in rerun.output.splitlines() if "Finished in state" in line]
    tasks = [line for line in ends if "Task run" in line]
    if "Up to date" not in rerun.output or not all("Cached" in line for line in tasks):
        raise RuntimeError(f"the second run was not a cached one:\n{rerun.output[-3000:]}")
    return len(tasks)


def summary(runs: dict[str, list[Timed]]) -> dict[str, float]:
    """Medians, and their difference."""
    found = {
        f"{name} {what}": round(measure.median(runs[name], what), 3)
        for name in ("rerun", "trivial flow")
        for what in ("seconds", "cpu_seconds")
    }
    for what in ("seconds", "cpu_seconds"):
        # Of each round, so that what slowed a whole round down falls out.
        gaps = zip(runs["rerun"], runs["trivial flow"], strict=True)
        each = sorted(getattr(ours, what) - getattr(theirs, what) for ours, theirs in gaps)
        found[f"ours {what}"] = round(each[len(each) // 2], 3)
    return found


def page(report: dict[str, Any]) -> list[str]:
    """Tables and words."""
    served, alone = report["with_server"], report["embedded"]
    rows = [
        ("whole rerun", served["rerun seconds"], alone["rerun seconds"]),
        ("goal", f"<= {TOTAL_GOAL:g}", "Prefect's own + 1"),
        (f"Prefect: {report['tasks']} tasks that do nothing", *both(report, "trivial flow")),
        ("ours: the rest", *both(report, "ours")),
        ("goal", f"<= {OURS_GOAL:g}", f"<= {OURS_GOAL:g}"),
        ("ours, of processor time", served["ours cpu_seconds"], alone["ours cpu_seconds"]),
    ]
    imports = ", ".join(f"`{name}` {seconds} s" for name, seconds in report["imports"].items())
    return [
        f"Seconds, medians of {report['rounds']} runs, in turns; {report['disturbance']} "
        f"(load average {report['load_average']} at the start). *Ours* is the median of the "
        f"rounds' differences. The first run, on 2,225 articles, took "
        f"{report['first_run_seconds']:g} s.",
        measure.table(("", "a server runs", "Prefect starts its own"), rows),
        f"Of both processes, imports alone: {imports}.",
    ]


def both(report: dict[str, Any], name: str) -> tuple[float, float]:
    """A figure with a server, and without one."""
    return report["with_server"][f"{name} seconds"], report["embedded"][f"{name} seconds"]


if __name__ == "__main__":
    main()
