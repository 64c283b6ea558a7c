"""Benchmarks are checked before training: unknown tasks, bad files, missing data are refused."""

from __future__ import annotations

import pytest
import yaml

from tasks.contracts.errors import BadRecipe, NotFound
from tasks.contracts.jobs import CheckBenchmarksJob, Done
from tasks.evaluate import benchmark_check_program
from tests.tasks.conftest import Notes
from tests.tasks.samples import SHIPS

pytest.importorskip("lm_eval")


@pytest.fixture
def check(ships_folder):
    """Checks tasks, and those in a folder."""

    def check(*tasks, folder=ships_folder):
        return benchmark_check_program.main(CheckBenchmarksJob(tasks=tasks, folder=folder), Notes())

    return check


class TestCheck:
    def test_own_tasks_with_their_data_pass(self, check):
        assert check("ships") == Done()

    def test_unknown_tasks_are_refused_with_the_nearest_names(self, check):
        with pytest.raises(BadRecipe, match="'shipz', 'zzzz', which lm-evaluation-h") as caught:
            check("ships", "shipz", "zzzz")
        assert caught.value.where == "evaluation.benchmarks"
        assert "write 'ships'" in caught.value.fix and "correct 'zzzz'" in caught.value.fix

    def test_the_library_has_tasks_without_a_folder(self, check):
        with pytest.raises(NotFound, match=r"lm-eval run --model dummy --tasks arc_easy"):
            check("arc_easy", folder=None)

    def test_missing_data_is_refused(self, check, ships_folder):
        described = SHIPS | {"dataset_path": "owner/ships", "dataset_kwargs": {}}
        (ships_folder / "ships.yaml").write_text(yaml.safe_dump(described))
        with pytest.raises(NotFound, match="data that is not on this machine"):
            check("ships")

    def test_an_invalid_task_file_is_refused(self, check, ships_folder):
        (ships_folder / "ships.yaml").write_text(yaml.safe_dump(SHIPS | {"metric_list": 3}))
        with pytest.raises(BadRecipe, match="'ships': ") as caught:
            check("ships")
        assert "lm-eval validate" in caught.value.fix
