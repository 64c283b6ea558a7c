"""The benchmarks of language models: what they compare is equal, and they run, with tiny shapes.

What they find is no matter here: that is for a quiet machine.
"""

import json
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.benchmarks import (
    architectures,
    generation,
    gpu_language,
    language_figures,
    language_training,
    measure,
)
from tests.benchmarks.language_data import PAD, SHAPES, draw_examples, draw_lengths
from tests.benchmarks.language_figures import OURS, Contender
from tests.benchmarks.language_training import PEERS
from tests.benchmarks.peers import install

SMOKE = SHAPES["smoke"]


class TestExamples:
    def test_lengths_have_the_sum_that_is_asked_for(self):
        tiny = SHAPES["tiny"]
        lengths = draw_lengths(tiny, tiny.examples, tiny.tokens, np.random.default_rng(1))
        assert lengths.sum() == tiny.tokens == 41_291
        assert lengths.min() >= 8
        assert lengths.max() <= tiny.longest

    def test_the_same_seed_draws_the_same(self):
        one, other = (draw_examples(SMOKE, 9, 0, 1.0, seed=4) for _ in range(2))
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.starts, other.starts)

    def test_no_real_token_is_a_pad_token(self):
        assert PAD not in draw_examples(SMOKE, 50, 0, 1.0, seed=4).ids

    @pytest.mark.parametrize(("share", "low", "high"), [(1.0, 0.9, 1.0), (0.4, 0.3, 0.5)])
    def test_as_many_tokens_are_targets_as_asked_for_but_never_the_first(self, share, low, high):
        found = draw_examples(SMOKE, 50, 0, share, seed=4)
        assert low < found.loss_mask.mean() < high
        assert not found.loss_mask[found.starts[:-1]].any()


class TestSteadyRate:
    def test_the_first_steps_do_not_count(self):
        samples = [
            (1, 9.0, 100, 1.0),
            (2, 10.0, 200, 2.0),
            (3, 11.0, 300, 2.5),
            (4, 12.0, 420, 3.0),
        ]
        assert language_figures.steady(samples) == 110
        assert language_figures.steady(samples, clock=3) == 220

    def test_too_few_samples_say_nothing(self):
        assert language_figures.steady([]) == 0
        assert language_figures.steady([(3, 1.0, 10, 1.0)]) == 0


class TestAReportWrittenInParts:
    def test_keeps_what_was_not_measured_again(self, tmp_path):
        def one(shape, part, number):
            return {"shape": shape, "part": part, "number": number}

        before = [one("tiny", "training", 1), one("smollm2", "training", 2)]
        file = tmp_path / "report.json"
        file.write_text(json.dumps({"comparisons": before}))
        again = {"comparisons": [one("smollm2", "training", 3), one("tiny", "chat", 4)]}
        found = language_training.with_earlier(again, file)["comparisons"]
        assert [each["number"] for each in found] == [1, 4, 3]
        assert language_training.with_earlier(again, tmp_path / "none")["comparisons"]


def judge(**changes):
    """Whether two contenders did the same, of which one did something else."""
    fact = {"trained_parameters": 5, "eval_loss": 2.0, "samples": [(1, 1.0, 100, 1.0)]}
    facts = {"a": [fact], "b": [fact | changes]}
    contenders = {name: Contender(None, ()) for name in facts}
    language_figures.same({"train_tokens": 100}, contenders, facts)


class TestUnequalWork:
    def test_equal_work_passes(self):
        judge()

    @pytest.mark.parametrize(
        "changes",
        [{"trained_parameters": 6}, {"eval_loss": 2.1}, {"samples": [(1, 1.0, 90, 1.0)]}],
    )
    def test_unequal_work_is_refused(self, changes):
        with pytest.raises(RuntimeError):
            judge(**changes)


class TestOperations:
    def test_they_are_counted_as_the_page_says(self):
        # 2 layers of q, k, v, o and three of the size between, and the head.
        weights = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64) + 32 * 256
        adapter = 2 * 16 * (64 * 2 + 48 * 2 + 3 * 96)
        seen = 12 * 32 * 2 * 5
        found = gpu_language.operations(SMOKE, np.array([10, 10]))
        assert found == 4 * weights + 6 * adapter + seen


class TestConversations:
    def test_they_are_questions_of_many_lengths_each_with_an_example(self, tmp_path):
        drawn = generation.draw_conversations(20)
        words = [len(each[0]["content"].split()) for each in drawn]
        assert max(words) > 3 * min(words)
        generation.save_examples(drawn, tmp_path / "test.parquet")
        rows = pq.read_table(tmp_path / "test.parquet").to_pylist()
        assert [json.loads(row["example"])["messages"][0] for row in rows] == [
            each[0] for each in drawn
        ]


class TestPeers:
    def test_an_environment_that_is_ready_is_not_made_again(self, tmp_path):
        (tmp_path / "trl").mkdir()
        (tmp_path / "trl" / "ready").touch()
        assert install.trl(tmp_path) == tmp_path / "trl" / "bin" / "python"


@pytest.mark.slow
class TestRuns:
    @pytest.fixture(autouse=True)
    def no_waiting(self, monkeypatch):
        monkeypatch.setattr(measure, "wait_for_quiet", lambda: 0.0)
        monkeypatch.setattr(measure, "DISTURBED", 1.0)

    def test_ours_and_the_plain_trainer_do_the_same(self, tmp_path):
        contenders = {
            OURS: Contender(sys.executable, ("-m", "tests.benchmarks.ours_training")),
            "Trainer": Contender(sys.executable, (str(PEERS / "plain_trainer.py"),)),
        }
        report = language_training.run(tmp_path, ["smoke"], ["chat"], 1, contenders, {})
        [found] = report["comparisons"]
        assert set(found["contenders"]) == set(contenders)
        assert found["target_tokens"] < 0.6 * found["tokens"]
        assert "| Trainer |" in "\n".join(language_training.page(report))

    def test_the_script_for_gpus_runs_without_one(self, tmp_path):
        contenders, _ = gpu_language.find_contenders(SMOKE, "cpu")
        chosen = {who: contenders[who] for who in (OURS, "Trainer")}
        report = gpu_language.run(tmp_path, SMOKE, "cpu", 1, chosen)
        assert report["failed"] == {}
        assert all(one["share_of_ceiling"] > 0 for one in report["contenders"].values())
        assert "| Trainer |" in "\n".join(gpu_language.page(report))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("architectures")
    architectures.prepare(folder)
    return folder


@pytest.mark.slow
class TestArchitectures:
    """A few of those that results/architectures.md lists: with attention of their own or none, left
    padding, experts."""

    @pytest.mark.parametrize(
        ("task", "model_type"),
        [
            ("text-classification", "deberta-v2"),
            ("text-classification", "mpnet"),
            ("text-classification", "xlnet"),
            ("completion", "falcon"),
            ("completion", "gemma2"),
            ("completion", "glm4_moe"),
            ("completion", "gptj"),
            ("completion", "mamba"),
            ("completion", "phimoe"),
        ],
    )
    def test_go_through_a_run(self, prepared, prefect_env, task, model_type):
        assert architectures.try_architecture(task, model_type, prepared) == ("works", "")
