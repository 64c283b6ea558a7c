"""A run that is killed again and again ends as if nothing had happened:
`python -m tests.faults.kill_trials [--trials 200] [--workers 2]`.

Each trial runs the whole flow on an empty store, kills it with SIGKILL up to three times, together
with every process that it started, and then lets it end. Instants are drawn at random: uniform over
the run, at a write to the store or to a target, or within the training. Afterwards everything must
be as in a run that nobody disturbed, see `problems_of`.

With `--pairs`, two runs of the same recipe are started at once, each killed and started again as
above; no two of them may train at the same time.

The trials are numbered, and each number draws its own instants. `results/kill_trials.json` (or
`kill_trials_pairs.json`) holds those that were done; another call goes on with the missing ones.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.doubles.prefect import PrefectServer
from tests.faults.soundness import NAME, Undisturbed, problems_of
from tests.flows.conftest import Place
from tests.tasks.samples import easy_rows, write_jsonl
from tests.tiny_models import make_encoder

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).resolve().parents[2]
ROWS = 300
CHECKPOINT_MINUTES = 0.02
MARK = "BURNISH_KILL_TRIAL"
"""Environment variable by which all processes of a trial are found."""
_LIMIT_SECONDS = 300
_MOST_KILLS = 3
_GONE_SECONDS = 10
# Progress is reported twice a second.
_REPORT_SECONDS = 0.5


@dataclass(frozen=True)
class Run:
    """One run of a trial.

    Attributes:
        kill: When it was to be killed, see `dying_run`; empty for the last run.
        killed: Whether it was, before it ended by itself.
        seconds: How long it took.
        notes: The lines that it wrote.
        output: What it printed.
    """

    kill: dict[str, Any]
    killed: bool
    seconds: float
    notes: list[dict[str, Any]]
    output: str

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Its reports of training steps."""
        return [line for line in self.notes if "step" in line]

    @property
    def killed_in_training(self) -> bool:
        """Whether it was killed between the first and the last step."""
        return self.killed and bool(self.steps) and self.steps[-1]["step"] < self.steps[-1]["steps"]


@dataclass(frozen=True)
class Trial:
    """What a trial found.

    Attributes:
        number: Of the trial; decides its instants.
        kills: The instants at which a run was killed.
        in_training: How many of them fell within a training.
        steps_lost: For each of those, the steps that the next run did again.
        steps_allowed: The steps made within a checkpoint interval and an upload.
        ended: The name of the last run's state.
        problems: What was not as it must be.
        seconds: All runs together.
    """

    number: int
    kills: list[dict[str, Any]]
    in_training: int
    steps_lost: list[int]
    steps_allowed: list[int]
    ended: str
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Trials:
    """Runs trials in a folder, against a Prefect server.

    Args:
        folder: For base model, data and stores.
        server: The Prefect server.
    """

    def __init__(self, folder: Path, server: PrefectServer) -> None:
        self.folder, self.server = folder, server
        self.base = make_encoder(folder / "base")
        self.undisturbed = self._undisturbed()

    def run(self, number: int) -> Trial:
        """Do one trial with one run at a time."""
        place, began = self._place(f"trial-{number}"), time.monotonic()
        runs = self._until_it_ends(place, random.Random(number))
        lost, allowed = steps_lost(runs)
        problems = [
            f"{one} steps lost, {most} allowed"
            for one, most in zip(lost, allowed, strict=True)
            if one > most
        ]
        return self._trial(number, place, runs, lost, allowed, problems, began)

    def run_pair(self, number: int) -> Trial:
        """Do one trial with two runs at once."""
        place, began = self._place(f"pair-{number}"), time.monotonic()
        draws = [random.Random(2 * number + half) for half in range(2)]
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda draw: self._until_it_ends(place, draw), draws))
        runs = [run for each in both for run in each]
        return self._trial(number, place, runs, [], [], overlaps(runs), began)

    def _until_it_ends(self, place: Place, draw: random.Random) -> list[Run]:
        """Start the flow again and again: killed, at last undisturbed."""
        runs = []
        for _ in range(draw.randint(1, _MOST_KILLS)):
            runs.append(self._start(place, self._instant(draw)))
            if not runs[-1].killed:
                return runs
        return [*runs, self._start(place, {})]

    def _trial(
        self,
        number: int,
        place: Place,
        runs: list[Run],
        lost: list[int],
        allowed: list[int],
        problems: list[str],
        began: float,
    ) -> Trial:
        problems = [*problems, *problems_of(place, self.undisturbed)]
        ends = [re.search(rf"^{NAME}: ([\w ]+)\.", run.output, re.M) for run in runs]
        ended = ends[-1]
        for run, end in zip(runs, ends, strict=True):
            if not run.killed and (not end or end[1] not in ("Released", "Up to date")):
                problems.append(f"ended with: {run.output[-600:]}")
        problems += self._left_running(place)
        if not problems:
            shutil.rmtree(place.folder)
        return Trial(
            number=number,
            kills=[run.kill for run in runs if run.killed],
            in_training=sum(run.killed_in_training for run in runs),
            steps_lost=lost,
            steps_allowed=allowed,
            ended=ended[1] if ended else "?",
            problems=problems,
            seconds=round(time.monotonic() - began, 1),
        )

    def _instant(self, draw: random.Random) -> dict[str, Any]:
        """When to kill: half of the kills are aimed at the training."""
        known = self.undisturbed
        kind = draw.choice(["training", "training", "write", "second"])
        if kind == "training":
            return {"step": draw.randint(1, known.steps - 1), "seconds": draw.uniform(0, 0.6)}
        if kind == "write":
            return {"write": draw.randint(1, known.writes), "after": draw.random() < 0.5}
        return {"seconds": draw.uniform(0.5, known.seconds)}

    def _place(self, name: str) -> Place:
        place = Place(self.folder / name, self.base)
        place.folder.mkdir()
        write_jsonl(place.data, easy_rows(ROWS))
        recipe = place.recipe(
            name=NAME, training__epochs=12, training__checkpoint_minutes=CHECKPOINT_MINUTES
        )
        (place.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
        return place

    def _start(self, place: Place, kill: dict[str, Any]) -> Run:
        """Run the flow until it ends or is killed."""
        name = uuid.uuid4().hex[:8]
        notes, log = place.folder / f"notes-{name}.jsonl", place.folder / f"run-{name}.log"
        began = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.faults.dying_run"),
                    *(place.folder / "recipe.yaml", notes, json.dumps(kill)),
                ],
                cwd=ROOT,
                env={
                    **os.environ,
                    **self.server.environment,
                    MARK: str(place.folder),
                    "OMP_NUM_THREADS": "1",
                },
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = process.wait(_LIMIT_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                status = process.wait()
                output.write(f"\nstopped after {_LIMIT_SECONDS} s\n".encode())
        lines = notes.read_text().splitlines() if notes.exists() else []
        return Run(
            kill=kill,
            killed=status == -signal.SIGKILL,
            seconds=time.monotonic() - began,
            notes=[json.loads(line) for line in lines if line.endswith("}")],
            output=log.read_text(errors="replace"),
        )

    def _undisturbed(self) -> Undisturbed:
        place = self._place("undisturbed")
        run = self._start(place, {})
        (record,) = (place.folder / "store" / "keys" / "finetune").glob("*.json")
        return Undisturbed(
            weights=json.loads(record.read_text())["artifact"]["digest"],
            release=place.log()[-1].release.digest,
            writes=sum("write" in line for line in run.notes),
            steps=run.steps[-1]["steps"],
            seconds=run.seconds,
            checkpoints=sum(line["saved"] for line in run.steps),
        )

    def _left_running(self, place: Place) -> list[str]:
        """Processes of a trial that have not ended some seconds after it."""
        deadline = time.monotonic() + _GONE_SECONDS
        while left := _marked(str(place.folder)):
            if time.monotonic() > deadline:
                return [f"still running: {process.cmdline()}" for process in left]
            time.sleep(0.2)
        return []


def steps_lost(runs: list[Run]) -> tuple[list[int], list[int]]:
    """For each kill within a training, the steps that the next training did again, and how many
    were made within a checkpoint interval, an upload and a report."""
    lost, allowed = [], []
    for run, later in itertools.pairwise(runs):
        if not run.killed_in_training or not later.steps:
            continue
        reached, end = run.steps[-1]["step"], run.notes[-1]["at"]
        uploads = [line["upload"] for line in run.notes if "upload" in line]
        grace = 60 * CHECKPOINT_MINUTES + max(uploads, default=0.5) + 2 * _REPORT_SECONDS
        before = [line["step"] for line in run.steps if line["at"] <= end - grace]
        lost.append(max(0, reached - later.steps[0]["step"]))
        allowed.append(reached - (before[-1] if before else run.steps[0]["step"]))
    return lost, allowed


def overlaps(runs: list[Run]) -> list[str]:
    """Trainings that went on at the same time."""
    spans = sorted(
        (run.steps[0]["clock"], max(line["clock"] for line in run.steps))
        for run in runs
        if run.steps
    )
    return [
        f"two trainings at once, for {one[1] - other[0]:.1f} s"
        for one, other in itertools.pairwise(spans)
        if one[1] > other[0]
    ]


def _marked(folder: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == folder:
                found.append(process)
    return found


def main() -> None:
    """Do the trials that are missing, and write the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--trials", type=int, default=200)
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--pairs", action="store_true", help="Two runs at once.")
    given = arguments.parse_args()
    file = RESULTS / ("kill_trials_pairs.json" if given.pairs else "kill_trials.json")
    done = {each["number"]: each for each in read_table(file)}
    missing = [number for number in range(1, given.trials + 1) if number not in done]
    folder = Path(tempfile.mkdtemp(prefix="kill-trials-"))
    (folder / "prefect").mkdir()
    with PrefectServer(folder / "prefect") as server, ThreadPoolExecutor(given.workers) as pool:
        trials = Trials(folder, server)
        print(trials.undisturbed, flush=True)
        for trial in pool.map(trials.run_pair if given.pairs else trials.run, missing):
            done[trial.number] = asdict(trial)
            write_table(file, trials.undisturbed, list(done.values()))
            print(trial, flush=True)
    if not any(trial["problems"] for trial in done.values()):
        shutil.rmtree(folder)


def read_table(file: Path) -> list[dict[str, Any]]:
    """The trials that were done before."""
    return json.loads(file.read_text())["trials"] if file.is_file() else []


def write_table(file: Path, undisturbed: Undisturbed, trials: list[dict[str, Any]]) -> None:
    """Write the trials as JSON, and what they found together as a page."""
    trials.sort(key=lambda trial: trial["number"])
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"undisturbed": asdict(undisturbed), "trials": trials}, indent=1))
    kills = [kill for trial in trials for kill in trial["kills"]]
    lost = [steps for trial in trials for steps in trial["steps_lost"]]
    bad = [trial for trial in trials if trial["problems"]]
    ends = {end: sum(t["ended"] == end for t in trials) for end in ("Released", "Up to date")}
    pairs = "pairs" in file.name
    lines = [
        "# Runs killed by SIGKILL" + (", two at once" if pairs else ""),
        f"{len(trials)} trials of up to {_MOST_KILLS} kills{' of each run' if pairs else ''}, "
        f"{len(kills)} kills in all: {sum('step' in kill for kill in kills)} aimed at the "
        f"training, {sum('write' in kill for kill in kills)} at a write to the store or a target, "
        f"the others at any second of the run. {sum(trial['in_training'] for trial in trials)} "
        f"fell within a training, of {undisturbed.steps} steps and {undisturbed.checkpoints} "
        f"checkpoints: one every {60 * CHECKPOINT_MINUTES:g} s and at each epoch's end.",
        f"{len(trials) - len(bad)} of {len(trials)} ended as an undisturbed run: the same weights "
        "and release, one log entry, one event, delivered; a sound store; no checkpoint, staged "
        "file or process left; "
        + (
            "no two runs training at the same time. "
            if pairs
            else "no more work lost than a checkpoint interval and an upload. "
        )
        + ", ".join(f"{count} ended *{end}*" for end, count in ends.items())
        + ".",
    ]
    if not pairs:
        lines.append(
            "Steps reported before a kill and done again after it: median "
            f"{statistics.median(lost) if lost else 0:g}, at most {max(lost, default=0)}."
        )
    lines += [f"Trial {trial['number']}: {'; '.join(trial['problems'])[:500]}" for trial in bad]
    made_by = "python -m tests.faults.kill_trials --pairs" if pairs else "make kill-trials"
    lines.append(f"Made by `{made_by}`.")
    file.with_suffix(".md").write_text("\n\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
