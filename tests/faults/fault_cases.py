"""One real fault for each way a run ends that needs a person, and what mends it."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from prefect.client.orchestration import get_client
from prefect.states import Cancelling
from safetensors.torch import load_file, save_file

from tasks.release import deployment_log, holds
from tests.flows.conftest import Place, training_programs
from tests.production.gpu_worker import kill
from tests.production.served import Served
from tests.tasks.samples import easy_rows, write_jsonl
from tests.waiting import wait_for

# Some seconds of training, with a checkpoint every second.
SOME = {"training__epochs": 30, "training__checkpoint_minutes": 0.01}


class Bench:
    """A place with a deployment of its own, for one fault.

    Args:
        folder: Of the place.
        served: The server.
        base: The base model.
        changes: To the recipe; `{folder}` stands for the folder.
    """

    def __init__(self, folder: Path, served: Served, base: Path, changes: dict[str, Any]) -> None:
        self.served, self.base, self.name = served, base, folder.name
        self.mended = threading.Event()
        self.place = Place(folder, base)
        folder.mkdir()
        self.write_data(600)
        filled = {
            name: value.format(folder=folder) if isinstance(value, str) else value
            for name, value in changes.items()
        }
        self.deployment = served.deploy(self.place, name=self.name, **filled)

    def write_data(self, rows: int) -> None:
        write_jsonl(self.place.data, easy_rows(rows))

    def start(self) -> Any:
        """Start a run; returns its id."""
        with get_client(sync_client=True) as client:
            return client.create_flow_run_from_deployment(self.deployment.id).id

    def release_first(self) -> None:
        """Let a first run release, and change the data."""
        assert self.served.ended(self.start()).name == "Released"
        self.write_data(700)

    def trainer(self) -> psutil.Process:
        """The training program of its run."""
        pid = self.served.process.pid
        return wait_for(lambda: training_programs(pid), "training", 300)[0]

    def edit(self, old: str, new: str) -> None:
        """Change the recipe's file."""
        file = self.place.folder / f"{self.name}.yaml"
        text = file.read_text()
        assert old in text, text
        file.write_text(text.replace(old, new))


Act = Callable[[Bench], Any]


@dataclass
class Case:
    """A fault.

    Attributes:
        ends: The name of the run's last state.
        fault: What is done, in words.
        changes: To the recipe.
        before: Done before the run starts.
        during: Done while it runs.
        mend: Does what the page says.
    """

    ends: str
    fault: str
    changes: dict[str, Any] = field(default_factory=dict)
    before: Act | None = None
    during: Act | None = None
    mend: Act | None = None


def _edit(old: str, new: str) -> Act:
    return lambda bench: bench.edit(old, new)


def _signal(kind: signal.Signals) -> Act:
    return lambda bench: bench.trainer().send_signal(kind)


def _signal_to_each(kind: signal.Signals) -> Act:
    """A signal to each training program until the fault is mended: one alone is survived."""

    def act(bench: Bench) -> None:
        bench.trainer()
        had: set[int] = set()

        def work() -> None:
            while not bench.mended.wait(0.2):
                for program in training_programs(bench.served.process.pid):
                    if program.pid not in had:
                        had.add(program.pid)
                        with contextlib.suppress(psutil.Error):
                            program.send_signal(kind)

        threading.Thread(target=work, daemon=True).start()

    return act


def _mended(bench: Bench) -> None:
    bench.mended.set()


def _kill_run(bench: Bench) -> None:
    trainer = bench.trainer()
    above = trainer.parents()
    kill(next(each for each in above if "PREFECT__FLOW_RUN_ID" in each.environ()))
    kill(trainer)


def _pickle_base(bench: Bench) -> None:
    shutil.copytree(bench.base, bench.place.folder / "base")
    for file in (bench.place.folder / "base").glob("*.safetensors"):
        file.rename(file.with_name("pytorch_model.bin"))


def _infinite_base(bench: Bench) -> None:
    _whole_base(bench)
    file = bench.place.folder / "base" / "model.safetensors"
    weights = load_file(file)
    weights["embeddings.LayerNorm.bias"][0] = float("inf")
    save_file(weights, file, metadata={"format": "pt"})


def _whole_base(bench: Bench) -> None:
    shutil.copytree(bench.base, bench.place.folder / "base", dirs_exist_ok=True)


def _block_target(bench: Bench) -> None:
    (bench.place.folder / "releases").write_text("a file where a folder must be")


def _unblock_target(bench: Bench) -> None:
    (bench.place.folder / "releases").unlink()


def _move_log(bench: Bench) -> None:
    """Another publisher moves the log all the time, as two deployments of one model would."""
    bench.release_first()

    def move() -> None:
        while not bench.mended.wait(0.02):
            with contextlib.suppress(Exception):
                newest = deployment_log.head(bench.place.store, bench.name, "production")
                entry = deployment_log.following(
                    newest, "lifted", "another", release=newest.release
                )
                if newest.kind != "revealing":
                    deployment_log.append(bench.place.store, entry)

    threading.Thread(target=move, daemon=True).start()


def _freeze(bench: Bench) -> None:
    bench.release_first()
    holds.freeze(bench.place.store, bench.name, "production", "Ada", "a holiday")


def _unfreeze(bench: Bench) -> None:
    holds.unfreeze(bench.place.store, bench.name, "production", "Ada", "back at work")


def _cancel_training(bench: Bench) -> None:
    """Cancel the run of the pool's worker, as a person can in the UI."""
    bench.trainer()
    with get_client(sync_client=True) as client:
        flow_run = next(
            run
            for run in client.read_flow_runs()
            if run.state.is_running() and bench.name in run.tags and "-on-" in run.name
        )
        client.set_flow_run_state(flow_run.id, Cancelling(), force=True)


CASES = {
    "bad-recipe": Case(
        "Bad recipe",
        "The recipe's file gets a field that does not exist",
        before=_edit("  epochs: 2", "  epoch: 2"),
        mend=_edit("  epoch: 2", "  epochs: 2"),
    ),
    "bad-data": Case(
        "Bad data",
        "A file that ends within a row",
        before=lambda bench: bench.place.data.write_text('{"text": "half'),
        mend=lambda bench: bench.write_data(600),
    ),
    "bad-model": Case(
        "Bad model",
        "The base model's weights are a pickle",
        {"model__uri": "{folder}/base"},
        before=_pickle_base,
        mend=_whole_base,
    ),
    "not-found": Case(
        "Not found",
        "The data are gone",
        before=lambda bench: bench.place.data.unlink(),
        mend=lambda bench: bench.write_data(600),
    ),
    "no-access": Case(
        "No access",
        "A webhook, but no secret to sign it with",
        {"announce__webhooks": "[http://127.0.0.1:9/hook]"},
        mend=_edit("webhooks:\n  - http://127.0.0.1:9/hook", "webhooks: []"),
    ),
    "killed": Case(
        "Killed",
        "SIGKILL to each training program",
        SOME,
        during=_signal_to_each(signal.SIGKILL),
        mend=_mended,
    ),
    "preempted": Case(
        "Preempted", "SIGTERM to the training program", SOME, during=_signal(signal.SIGTERM)
    ),
    "crashed": Case("Crashed", "SIGKILL to the run and its program", SOME, during=_kill_run),
    "code": Case("Code", "SIGSEGV to the training program", SOME, during=_signal(signal.SIGSEGV)),
    "time-out": Case(
        "Time-out",
        "A training that is longer than its limit",
        SOME | {"training__time_limit_minutes": 0.05},
        mend=_edit("time_limit_minutes: 0.05", "time_limit_minutes: 60"),
    ),
    "hung": Case(
        "Hung",
        "SIGSTOP to each training program",
        SOME | {"training__stall_minutes": 0.2},
        during=_signal_to_each(signal.SIGSTOP),
        mend=_mended,
    ),
    "training-diverged": Case(
        "Training diverged",
        "The base model has a weight that is infinite",
        {"model__uri": "{folder}/base"},
        before=_infinite_base,
        mend=_whole_base,
    ),
    "storage": Case(
        "Storage",
        "A file where the target's folder must be",
        before=_block_target,
        mend=_unblock_target,
    ),
    "hub": Case(
        "Hub",
        "The Hub cannot be reached",
        {"publish__targets": "[hf://ci/tiny]"},
        mend=_edit("targets:\n  - hf://ci/tiny", "targets: []"),
    ),
    "gate": Case(
        "Gate",
        "Another publisher moves the log all the time",
        before=_move_log,
        mend=_mended,
    ),
    "pool": Case(
        "Pool",
        "A GPU pool that no worker has registered",
        {"plan__pool": "nowhere"},
        mend=_edit("pool: nowhere", "pool: ''"),
    ),
    "training-cancelled": Case(
        "Training cancelled",
        "A person cancels the run of the pool's worker",
        SOME | {"plan__pool": "gpu"},
        during=_cancel_training,
    ),
    "held": Case("Held", "A frozen channel", before=_freeze, mend=_unfreeze),
}
NOT_MADE = {
    "Out of GPU memory": "needs a GPU",
    "LLM judge": "for language models: tests/flows/test_language.py",
    "Bad request": "of commands, not of runs: tests/flows/test_holds.py",
}
