"""A run that trains on a pool ends as if nothing had happened, whatever is killed:
`python -m tests.faults.pool_trials [--trials 20]`.

The store is on S3, the worker has another home and folder. Each trial starts the run and kills up
to three times, at random instants: the run that asks, the worker's run, the whole worker with its
run, as the loss of a machine does, or the worker by SIGTERM, as a shutdown does. What was killed is
started again, but for the worker's run, which the run that asks must replace.
`results/pool_trials.json` holds the trials that were done; another call goes on with the missing
ones.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from tasks.contracts.results import Finetuned
from tasks.release import deployment_log
from tasks.storage.store import Store, open_store
from tests.doubles.prefect import PrefectServer
from tests.doubles.s3 import S3Server
from tests.faults.soundness import damaged_artifacts
from tests.flows.conftest import Place
from tests.production.gpu_worker import Worker, kill
from tests.tasks.samples import easy_rows, write_jsonl
from tests.tiny_models import make_encoder

RESULTS = Path(__file__).parent / "results" / "pool_trials.json"
ROOT = Path(__file__).resolve().parents[2]
VICTIMS = (
    "the run that asks",
    "the worker's run",
    "the worker with its run",
    "the worker by SIGTERM",
)
ROWS = 300
_MOST_KILLS = 3
_SPAN_SECONDS = 25.0
_LIMIT_SECONDS = 400


class PoolTrials:
    """Runs trials in a folder; the environment names the servers.

    Args:
        folder: For base model, data, releases, and the worker's files.
        bucket: For the stores.
    """

    def __init__(self, folder: Path, bucket: str) -> None:
        self.folder, self.bucket = folder, bucket
        self.base = make_encoder(folder / "base")
        self.worker = Worker(folder / "worker")
        self.digest = self._undisturbed()

    def run(self, number: int) -> dict[str, Any]:
        """Do one trial."""
        draw, began = random.Random(number), time.monotonic()
        place, store = self._place(f"trial-{number}", f"s3://{self.bucket}/trial-{number}")
        run, kills = self._start(place), []
        for _ in range(draw.randint(1, _MOST_KILLS)):
            wait = draw.uniform(1, _SPAN_SECONDS)
            victim = draw.choice(VICTIMS)
            try:
                run.wait(wait)
                break
            except subprocess.TimeoutExpired:
                kills.append({"victim": victim, "seconds": round(wait, 1)})
            run = self._kill(victim, run, place)
        problems = []
        try:
            status = run.wait(_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            run.kill()
            status = f"no end within {_LIMIT_SECONDS} s"
        if status != 0:
            log = (place.folder / "log").read_text(errors="replace")[-1500:]
            problems.append(f"exit status {status}: {log}")
        problems += self._problems(store)
        if not problems:
            shutil.rmtree(place.folder)
        return {
            "number": number,
            "kills": kills,
            "resumed": _resumed(store),
            "problems": problems,
            "seconds": round(time.monotonic() - began, 1),
        }

    def _kill(self, victim: str, run: subprocess.Popen, place: Place) -> subprocess.Popen:
        if victim == "the run that asks":
            run.kill()
            run.wait()
            return self._start(place)
        if victim == "the worker's run":
            for each in self.worker.runs():
                kill(each)
            return run
        if victim == "the worker by SIGTERM":
            self.worker.stop()
        else:
            self.worker.lose()
        self.worker.start()
        return run

    def _problems(self, store: Store) -> list[str]:
        entries = deployment_log.entries(store, "tiny", "production")
        deployed = [entry.release.digest for entry in entries if entry.kind == "deployed"]
        found = [] if deployed == [self.digest] else [f"deployed: {deployed}"]
        records = store.objects.sizes("keys/finetune/")
        found += [] if len(records) == 1 else [f"{len(records)} records of the training"]
        left = [path for path in store.objects.sizes("") if "checkpoint" in path]
        found += [f"checkpoints left: {left[:3]}"] if left else []
        return found + damaged_artifacts(store)

    def _place(self, name: str, store: str) -> tuple[Place, Store]:
        place = Place(self.folder / name, self.base)
        write_jsonl(place.data, easy_rows(ROWS))
        recipe = place.recipe(
            plan__pool="gpu", store=store, training__epochs=20, training__checkpoint_minutes=0.02
        )
        (place.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
        return place, open_store(store)

    def _start(self, place: Place) -> subprocess.Popen:
        with open(place.folder / "log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "flows.cli", "retrain", str(place.folder / "recipe.yaml")],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _undisturbed(self) -> str:
        place, store = self._place("undisturbed", f"s3://{self.bucket}/undisturbed")
        status = self._start(place).wait(_LIMIT_SECONDS)
        if status != 0:
            raise RuntimeError((place.folder / "log").read_text()[-3000:])
        (entry,) = [
            entry
            for entry in deployment_log.entries(store, "tiny", "production")
            if entry.kind == "deployed"
        ]
        return entry.release.digest


def _resumed(store: Store) -> str:
    """Where the training that ended went on from."""
    for path in store.objects.sizes("keys/finetune/"):
        return Finetuned.model_validate(store.read_json(path)).resumed
    return ""


def main() -> None:
    """Do the trials that are missing, and write the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--trials", type=int, default=20)
    given = arguments.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    done = {trial["number"]: trial for trial in found}
    folder = Path(tempfile.mkdtemp(prefix="pool-trials-"))
    (folder / "prefect").mkdir()
    with PrefectServer(folder / "prefect") as server, S3Server() as s3:
        os.environ |= server.environment | {
            "AWS_ACCESS_KEY_ID": s3.access_key,
            "AWS_SECRET_ACCESS_KEY": s3.secret_key,
            "AWS_ENDPOINT_URL": s3.endpoint,
            "AWS_REGION": s3.region,
            "AWS_DEFAULT_REGION": s3.region,
            "OMP_NUM_THREADS": "1",
        }
        trials = PoolTrials(folder, s3.make_bucket())
        try:
            for number in range(1, given.trials + 1):
                if number not in done:
                    done[number] = trials.run(number)
                    write_table(list(done.values()))
                    print(done[number], flush=True)
        finally:
            trials.worker.stop()


def write_table(trials: list[dict[str, Any]]) -> None:
    """Write the trials as JSON, and what they found together as a page."""
    trials.sort(key=lambda trial: trial["number"])
    RESULTS.write_text(json.dumps(trials, indent=1))
    victims = Counter(each["victim"] for trial in trials for each in trial["kills"])
    bad = [trial for trial in trials if trial["problems"]]
    resumed = sum(bool(trial["resumed"]) for trial in trials)
    lines = [
        "# Runs that train on a pool, killed",
        f"{len(trials)} trials, the store on S3, the worker with another home and folder. Killed: "
        + ", ".join(f"{victim} {victims[victim]} times" for victim in VICTIMS)
        + ".",
        f"{len(trials) - len(bad)} of {len(trials)} ended as an undisturbed run: the same release, "
        "one record of the training, one deployed entry, a sound store, no checkpoint left. In "
        f"{resumed} of them the training that ended had gone on from a checkpoint.",
        *(f"Trial {trial['number']}: {'; '.join(trial['problems'])[:500]}" for trial in bad),
        "Made by `python -m tests.faults.pool_trials`.",
    ]
    RESULTS.with_suffix(".md").write_text("\n\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
