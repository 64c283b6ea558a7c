"""Tasks of lm-evaluation-harness on a tiny model. Needs the extra `benchmarks`."""

from __future__ import annotations

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tasks.chat.stop_tokens import training_tokenizer
from tasks.contracts.errors import NotFound
from tasks.contracts.jobs import BenchmarkJob
from tasks.evaluate import benchmark_program
from tests.tasks.conftest import DEVICE, Notes
from tests.tasks.evaluate.samples import SHIP_ROWS
from tests.tasks.samples import SHIPS

pytest.importorskip("lm_eval")


@pytest.fixture
def run(tiny_lm, ships_folder):
    def go(**changes):
        fields = {
            "model": tiny_lm,
            "kind": "merged",
            "base": None,
            "quantization": "none",
            "tokenizer": None,
            "device": DEVICE,
            "tasks": ["ships"],
            "folder": ships_folder,
            "limit": 0,
            "chat": False,
            "batch_size": 4,
        }
        return benchmark_program.main(BenchmarkJob(**fields | changes), Notes())

    return go


def accuracy_by_hand(home):
    """The share of questions whose right choice is the most likely one."""
    model = AutoModelForCausalLM.from_pretrained(home, dtype=torch.float32).eval()
    tokenizer = training_tokenizer(home)

    def likelihood(question, choice):
        start = len(tokenizer(question)["input_ids"])
        ids = torch.tensor([tokenizer(question + choice)["input_ids"]])
        with torch.no_grad():
            log_probabilities = torch.log_softmax(model(ids).logits[0].double(), -1)
        return float(log_probabilities[:-1].gather(1, ids[0, 1:, None])[start - 1 :].sum())

    right = 0
    for row in SHIP_ROWS:
        found = [likelihood(row["question"], choice) for choice in row["choices"]]
        right += found.index(max(found)) == row["label"]
    return right / len(SHIP_ROWS)


class TestOwnTasks:
    def test_task_runs_on_the_released_model(self, run, tiny_lm):
        found = run()
        assert found.examples == {"ships": 9}
        assert found.results["ships"]["acc"] == pytest.approx(accuracy_by_hand(tiny_lm))
        assert set(found.results["ships"]) == {"acc", "acc_stderr"}

    def test_limit_and_chat_template_can_be_set(self, run):
        assert run(limit=3, chat=True).examples == {"ships": 3}


class TestRefusals:
    def test_missing_data_is_refused(self, run, ships_folder):
        described = SHIPS | {"dataset_path": "owner/ships", "dataset_kwargs": {}}
        (ships_folder / "ships.yaml").write_text(yaml.safe_dump(described))
        with pytest.raises(NotFound, match=r"lm-eval run --model dummy --tasks ships"):
            run()
