"""Harness: what is refused early, what belongs to the key, and what the report shows."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import yaml

from tasks.contracts.artifacts import Artifact
from tasks.contracts.errors import BadRecipe, NotFound
from tasks.contracts.jobs import Done
from tasks.contracts.results import Benchmarked
from tasks.evaluate import benchmark_step
from tasks.evaluate.benchmark_step import BenchmarkTasks, check_benchmarks
from tasks.report.markdown import benchmarks_markdown
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


class TestEarly:
    def test_refused_where_it_is_not_installed(self, monkeypatch, tmp_path):
        monkeypatch.setattr(benchmark_step, "find_spec", lambda name: None)
        with pytest.raises(BadRecipe, match=r"pip install 'burnish\[benchmarks\]'"):
            check_benchmarks(tasks_of("ships"), run_context(tmp_path))

    @needs_harness
    def test_refused_where_it_does_not_know_a_name(self, tmp_path):
        with pytest.raises(BadRecipe) as caught:
            check_benchmarks(tasks_of("arc_easi"), run_context(tmp_path))
        assert caught.value.where == "evaluation.benchmarks"
        assert "'arc_easi'" in caught.value.found and "'arc_easy'" in caught.value.fix

    @needs_harness
    def test_looked_for_once_until_the_task_files_change(self, tmp_path, monkeypatch):
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
        # It is no cache of what is not there.
        own_tasks(tmp_path, task="shops")
        with pytest.raises(BadRecipe, match=r"'ships', which.*'shops'"):
            check_benchmarks(tasks_of("ships", folder=folder), run_context(tmp_path))

    @needs_harness
    def test_refused_where_its_data_are_not_on_this_machine(self, tmp_path):
        folder = own_tasks(tmp_path, dataset_path="owner/ships", dataset_kwargs={})
        with pytest.raises(NotFound, match=r"lm-eval run --model dummy --tasks ships"):
            check_benchmarks(tasks_of("ships", folder=folder), run_context(tmp_path))

    @needs_harness
    def test_refused_where_its_file_is_wrong(self, tmp_path):
        folder = own_tasks(tmp_path, test_split="exam")
        with pytest.raises(BadRecipe, match=r"'ships': .*exam"):
            check_benchmarks(tasks_of("ships", folder=folder), run_context(tmp_path))


class TestTheReport:
    def test_shows_the_baseline_beside_the_candidate(self):
        def of(value):
            return Benchmarked(
                artifact=ARTIFACT,
                results={"ships": {"f1/strict": value, "f1_stderr/strict": 0.0125}},
                examples={"ships": 9},
            )

        shown = benchmarks_markdown(of(0.5), of(0.25))
        assert "| ships | f1/strict | 0.2500 ± 0.0125 | 0.5000 ± 0.0125 | 9 |" in shown
        assert "| ships | f1/strict |  | 0.5000 ± 0.0125 | 9 |" in benchmarks_markdown(
            of(0.5), None
        )
