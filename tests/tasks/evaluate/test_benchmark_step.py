"""The benchmarks step: tasks that cannot be run are refused before training."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import yaml

from tasks.contracts.artifacts import Artifact
from tasks.contracts.errors import BadRecipe, NotFound
from tasks.contracts.jobs import Done
from tasks.evaluate import benchmark_step
from tasks.evaluate.benchmark_step import BenchmarkTasks, check_benchmarks
from tasks.runtime.run_program import run_program
from tasks.storage.sources import resolve
from tests.tasks.samples import SHIPS, run_context

needs_harness = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="needs the extra `benchmarks`"
)
ARTIFACT = Artifact(kind="model", digest="d" * 64, files=1, bytes=1, uri="")


def tasks_of(*names, folder=None) -> BenchmarkTasks:
    """Tasks by name, some of them perhaps in a folder."""
    return BenchmarkTasks(names=names, folder=resolve(str(folder), "tasks") if folder else None)


def own_tasks(home, **changes):
    """A folder with a task file and its data."""
    folder = home / "own"
    folder.mkdir(exist_ok=True)
    (folder / "ships.yaml").write_text(yaml.safe_dump({**SHIPS, **changes}))
    (folder / "ships.jsonl").write_text('{"question": "A", "choices": ["b", "c"], "label": 0}\n')
    return folder


class TestCheckBenchmarks:
    def test_missing_harness_is_refused(self, monkeypatch, tmp_path):
        monkeypatch.setattr(benchmark_step, "find_spec", lambda name: None)
        with pytest.raises(BadRecipe, match=r"pip install 'burnish\[benchmarks\]'"):
            check_benchmarks(tasks_of("ships"), run_context(tmp_path))

    @needs_harness
    def test_unknown_task_is_refused(self, tmp_path):
        with pytest.raises(BadRecipe) as caught:
            check_benchmarks(tasks_of("arc_easi"), run_context(tmp_path))
        assert caught.value.where == "evaluation.benchmarks"
        assert "'arc_easi'" in caught.value.found and "'arc_easy'" in caught.value.fix

    @needs_harness
    def test_tasks_are_checked_once_until_their_files_change(self, tmp_path, monkeypatch):
        folder = own_tasks(tmp_path)
        runs = []
        monkeypatch.setattr(
            benchmark_step,
            "run_program",
            lambda *job, **more: runs.append(run_program(*job, **more)),
        )
        for _ in range(2):
            check_benchmarks(tasks_of("ships", folder=folder), run_context(tmp_path))
        assert runs == [Done()]
        # A failed check is not cached.
        own_tasks(tmp_path, task="shops")
        with pytest.raises(BadRecipe, match=r"'ships', which.*'shops'"):
            check_benchmarks(tasks_of("ships", folder=folder), run_context(tmp_path))

    @needs_harness
    def test_missing_data_is_refused(self, tmp_path):
        folder = own_tasks(tmp_path, dataset_path="owner/ships", dataset_kwargs={})
        with pytest.raises(NotFound, match=r"lm-eval run --model dummy --tasks ships"):
            check_benchmarks(tasks_of("ships", folder=folder), run_context(tmp_path))

    @needs_harness
    def test_invalid_task_file_is_refused(self, tmp_path):
        folder = own_tasks(tmp_path, test_split="exam")
        with pytest.raises(BadRecipe, match=r"'ships': .*exam"):
            check_benchmarks(tasks_of("ships", folder=folder), run_context(tmp_path))
