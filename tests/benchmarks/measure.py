"""Timing whole processes in turns, and writing down what was found."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("prefect", "torch", "transformers", "peft", "bitsandbytes", "pydantic", "pyarrow")
QUIET_LOAD = 4.0
QUIET_WAIT_SECONDS = 600
# Of all cores; a round in which other processes used more is repeated, as often as this allows.
DISTURBED = 0.2
MOST_ROUNDS = 2


@dataclass(frozen=True)
class Command:
    """A process to be timed.

    Attributes:
        argv: What to run.
        environment: Added to this process's own.
        status: The exit status that it must end with.
    """

    argv: Sequence[str | Path]
    environment: Mapping[str, str] = field(default_factory=dict)
    status: int = 0


@dataclass(frozen=True)
class Timed:
    """What a process took.

    Attributes:
        seconds: By the clock on the wall, from its start to its end.
        cpu_seconds: Of all cores, its child processes included.
        others: The share of all cores that other processes used meanwhile.
        output: What it printed.
        number: Of its round.
    """

    seconds: float
    cpu_seconds: float
    others: float
    output: str
    number: int


def timed(command: Command, folder: Path, number: int = 0) -> Timed:
    """Run a process to its end.

    Args:
        command: What to run.
        folder: Where.
        number: Of the round.

    Raises:
        RuntimeError: It ended in another way than it must.
    """
    with (folder / "output.log").open("w+b") as log:
        busy, began = _busy_seconds(), time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command.argv],
            cwd=folder,
            env={**os.environ, **command.environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        output = log.read().decode(errors="replace")
    if process.returncode != command.status:
        raise RuntimeError(f"{command.argv}: status {process.returncode}\n{output[-3000:]}")
    cpu = used.ru_utime + used.ru_stime
    others = (_busy_seconds() - busy - cpu) / (seconds * (os.cpu_count() or 1))
    return Timed(seconds, cpu, max(others, 0.0), output, number)


def _busy_seconds() -> float:
    """What all cores have worked since the machine's start; 0 where nothing tells."""
    try:
        ticks = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except OSError:
        return 0.0
    user, nice, system, _, _, *interrupts = map(int, ticks)
    return (user + nice + system + sum(interrupts[:2])) / os.sysconf("SC_CLK_TCK")


def alternate(
    contenders: Mapping[str, Callable[[int], Command]],
    rounds: int,
    folder: Path,
    most: int = MOST_ROUNDS,
) -> dict[str, list[Timed]]:
    """Run each contender once a round, A B A B, so that a slow minute hits all of them.

    Rounds that other processes disturbed are repeated; those that were disturbed least count.

    Args:
        contenders: For each name, what makes its command for a round.
        rounds: How many shall count.
        folder: To run in.
        most: How many times as many may be run.
    """
    done: list[dict[str, Timed]] = []
    while len(done) < most * rounds:
        each = {
            name: timed(contender(len(done)), folder, len(done))
            for name, contender in contenders.items()
        }
        done.append(each)
        for name, once in each.items():
            print(
                f"round {len(done)} {name}: {once.seconds:.2f} s, {once.cpu_seconds:.2f} s of "
                f"processor time, others used {once.others:.0%}",
                flush=True,
            )
        if sum(_disturbance(each) <= DISTURBED for each in done) == rounds:
            break
    # Chosen by what others did, never by what came out.
    chosen = sorted(sorted(done, key=_disturbance)[:rounds], key=_number)
    return {name: [each[name] for each in chosen] for name in contenders}


def _disturbance(each: Mapping[str, Timed]) -> float:
    return max(once.others for once in each.values())


def _number(each: Mapping[str, Timed]) -> int:
    return next(iter(each.values())).number


def disturbance(comparisons: Sequence[Mapping[str, Sequence[Timed]]]) -> str:
    """In words, how far other processes disturbed the runs that count."""
    most = max(once.others for runs in comparisons for each in runs.values() for once in each)
    return (
        f"rounds in which other processes used more than {DISTURBED:.0%} of the cores were "
        f"repeated, up to {MOST_ROUNDS} times as many; in those that count they used at most "
        f"{most:.0%}"
    )


def median(runs: Sequence[Timed], what: str = "seconds") -> float:
    """The median of the runs' seconds, or of another attribute."""
    return statistics.median(getattr(run, what) for run in runs)


def as_lists(runs: Mapping[str, Sequence[Timed]]) -> dict[str, dict[str, list[float]]]:
    """Every single measurement, for the JSON file."""
    return {
        name: {
            what: [round(getattr(run, what), 3) for run in each]
            for what in ("seconds", "cpu_seconds", "others")
        }
        for name, each in runs.items()
    }


def wait_for_quiet() -> float:
    """Wait a while for other work on the machine to end; returns the load average."""
    deadline = time.monotonic() + QUIET_WAIT_SECONDS
    while os.getloadavg()[0] > QUIET_LOAD and time.monotonic() < deadline:
        time.sleep(10)
    return round(os.getloadavg()[0], 2)


def copy_code(folder: Path) -> dict[str, str]:
    """Copy the code, and say how to run the copy.

    An edit between two runs would change what they measure, and the keys of their steps.

    Returns:
        Environment variables that put the copy before the original.
    """
    for name in ("flows", "tasks"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "code" / name, ignore=ignored)
    before = filter(None, [os.environ.get("PYTHONPATH")])
    return {
        "PYTHONPATH": os.pathsep.join([str(folder / "code"), *before]),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def burnish() -> Path:
    """The `burnish` command of this environment."""
    return Path(sys.executable).with_name("burnish")


def package_folder(package: str, *parts: str) -> Path:
    """A folder inside an installed package, found without importing it."""
    [place] = util.find_spec(package).submodule_search_locations
    return Path(place).joinpath(*parts)


def machine() -> dict[str, Any]:
    """What a figure depends on, without naming the machine."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in LIBRARIES if installed(name)},
    }


def installed(package: str) -> bool:
    """Whether a distribution of this name is there."""
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def write(name: str, title: str, report: dict[str, Any], body: Sequence[str]) -> None:
    """Write `results/NAME.json` and `results/NAME.md`, and print the latter.

    Args:
        name: The benchmark's module.
        title: Of the page.
        report: All figures.
        body: The page's paragraphs and tables.
    """
    where = machine()
    libraries = ", ".join(f"{library} {version}" for library, version in where["libraries"].items())
    made = (
        f"{where['date']}, {where['processor']}, {where['cores']} cores, "
        f"Python {where['python']}, {libraries}. Made by `python -m tests.benchmarks.{name}`."
    )
    text = "\n\n".join([f"# {title}", made, *body]) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({**where, **report}, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(text)
    print(text)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table; the first column is text, the others are numbers."""
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [head, marks, *rows])
