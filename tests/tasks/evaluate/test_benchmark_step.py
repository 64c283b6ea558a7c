"""Harness: what is refused early, what belongs to the key, and what the report shows."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import yaml

from tasks.contracts.artifacts import Artifact
from tasks.contracts.errors import BadRecipe, NotFound
from tasks.contracts.recipe import Recipe
from tasks.contracts.results import Benchmarked
from tasks.evaluate import benchmark_step
from tasks.evaluate.benchmark_step import benchmark_inputs, check_benchmarks, run_benchmarks
from tasks.evaluate.step import ScoreInputs
from tasks.report.markdown import benchmarks_markdown
from tasks.runtime.run_program import run_program
from tests.tasks.samples import SHIPS, run_context

needs_harness = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="needs the extra `benchmarks`"
)
ARTIFACT = Artifact(kind="model", digest="d" * 64, files=1, bytes=1, uri="")


def recipe(**evaluation) -> Recipe:
    return Recipe(
        name="tiny",
        task="instruction",
        data={"uri": "data.jsonl"},
        model={"uri": "model"},
        evaluation={"slices": ["length"], "benchmarks": ["ships"], **evaluation},
    )


def scoring(**changes) -> ScoreInputs:
    return ScoreInputs(
        **{
            "kind": "merged",
            "model": ARTIFACT,
            "base": None,
            "quantization": "none",
            "labels": (),
            "seed": 1,
            "test_digest": "t",
            "dataset": ARTIFACT,
            "hardware": "",
            "batch_size": 4,
            "device": "cpu",
            **changes,
        }
    )


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
            check_benchmarks(recipe(), run_context(tmp_path))

    def test_not_missed_where_it_is_not_asked_for(self, monkeypatch, tmp_path):
        monkeypatch.setattr(benchmark_step, "find_spec", lambda name: None)
        check_benchmarks(recipe(benchmarks=[]), run_context(tmp_path))

    def test_refused_where_its_folder_is_missing(self, monkeypatch, tmp_path):
        monkeypatch.setattr(benchmark_step, "find_spec", lambda name: "there")
        with pytest.raises(NotFound):
            check_benchmarks(recipe(benchmark_folder=str(tmp_path / "none")), run_context(tmp_path))

    @needs_harness
    def test_refused_where_it_does_not_know_a_name(self, tmp_path):
        with pytest.raises(BadRecipe) as caught:
            check_benchmarks(recipe(benchmarks=["arc_easi"]), run_context(tmp_path))
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
        asked = recipe(benchmark_folder=str(folder))
        for _ in range(2):
            check_benchmarks(asked, run_context(tmp_path))
        assert runs == [{}]
        # It is no cache of what is not there.
        own_tasks(tmp_path, task="shops")
        with pytest.raises(BadRecipe, match=r"'ships', which.*'shops'"):
            check_benchmarks(asked, run_context(tmp_path))

    @needs_harness
    def test_refused_where_its_data_are_not_on_this_machine(self, tmp_path):
        folder = own_tasks(tmp_path, dataset_path="owner/ships", dataset_kwargs={})
        with pytest.raises(NotFound, match=r"lm-eval run --model dummy --tasks ships"):
            check_benchmarks(recipe(benchmark_folder=str(folder)), run_context(tmp_path))

    @needs_harness
    def test_refused_where_its_file_is_wrong(self, tmp_path):
        folder = own_tasks(tmp_path, test_split="exam")
        with pytest.raises(BadRecipe, match=r"'ships': .*exam"):
            check_benchmarks(recipe(benchmark_folder=str(folder)), run_context(tmp_path))


class TestTheKey:
    def test_is_of_the_models_and_the_task_files_content(self, tmp_path):
        folder = own_tasks(tmp_path)
        asked = recipe(benchmark_folder=str(folder))
        key = run_benchmarks.key(benchmark_inputs(asked, scoring()))
        assert key == run_benchmarks.key(benchmark_inputs(asked, scoring(batch_size=9, seed=2)))
        other = ARTIFACT.model_copy(update={"digest": "e" * 64})
        assert key != run_benchmarks.key(benchmark_inputs(asked, scoring(model=other)))
        own_tasks(tmp_path, target_delimiter=" ")
        described = run_benchmarks.key(benchmark_inputs(asked, scoring()))
        (folder / "ships.jsonl").write_text("{}")
        assert len({key, described, run_benchmarks.key(benchmark_inputs(asked, scoring()))}) == 3


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
