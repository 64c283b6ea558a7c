"""How much a training has to do, and the throughput of similar ones."""

import pytest

from tasks.contracts.plan import Plan
from tasks.contracts.results import Finetuned, Provenance
from tasks.plan.workload import (
    TrainingKind,
    WorkloadInputs,
    longest_sequence,
    remember_throughput,
    target_share,
    tokens_of_large_step,
    workload,
)
from tests.tasks.plan.conftest import artifact, loaded, tokenized
from tests.tasks.samples import run_context

DATA = loaded(train=80, validation=10, test=10)


def kind(**changes):
    facts = {
        "architecture": "LlamaForCausalLM",
        "shape": {"hidden": 32},
        "task": "instruction",
        "lora": {},
        "quantization": "none",
        "plan": Plan(device="cpu", precision="fp32"),
    }
    return TrainingKind(**facts | changes)


def workload_of(context, training=None):
    inputs = WorkloadInputs(
        kind=training or kind(),
        device_kind="A Card",
        loaded=DATA,
        tokenized=tokenized(),
        batch_size=8,
        epochs=2,
    )
    return workload(inputs, context)


def finetuned(run_id="run 1"):
    return Finetuned(
        artifact=artifact("model"),
        metrics={},
        history=(),
        best_epoch=1,
        steps=1,
        trained_parameters=1,
        tokens_per_second=50.0,
        provenance=Provenance(run_id=run_id, run_name="", at="", seconds=1, libraries={}, code=""),
    )


class TestSequences:
    def test_are_truncated(self):
        assert longest_sequence("instruction", longest=500, max_length=128) == 128

    def test_of_both_sides_of_a_pair_go_together(self):
        assert longest_sequence("preference", longest=500, max_length=128) == 256


class TestALargeStep:
    def test_has_examples_of_twice_the_mean_length(self):
        # Eight examples of 60 tokens, twice that for a large step, to the next power of two.
        assert tokens_of_large_step(tokenized(), DATA, examples=8, longest=128) == 1024

    def test_has_no_more_tokens_than_its_examples_can_have(self):
        assert tokens_of_large_step(tokenized(), DATA, examples=8, longest=100) == 800

    def test_is_the_same_for_a_few_rows_more(self):
        more = tokenized(tokens=6100, target_tokens=3049)
        assert tokens_of_large_step(more, DATA, examples=8, longest=128) == 1024
        assert target_share(more) == target_share(tokenized()) == 0.5


class TestThroughput:
    @pytest.fixture
    def context(self, tmp_path):
        return run_context(tmp_path, run_id="run 1")

    def test_is_unknown_until_a_similar_model_was_trained(self, context):
        before = workload_of(context)
        assert (before.tokens, before.steps, before.seconds) == (4800, 20, None)
        remember_throughput(kind(), "A Card", finetuned(), context)
        assert workload_of(context).seconds == 2 * 4800 / 50
        plan = Plan(device="cpu", precision="fp32", checkpointing=True)
        assert workload_of(context, kind(plan=plan)).seconds is None

    def test_of_a_reused_result_is_not_stored(self, context):
        remember_throughput(kind(), "A Card", finetuned(run_id="run 2"), context)
        assert workload_of(context).seconds is None
