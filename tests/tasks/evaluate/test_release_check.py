"""What ships is what was trained, and works for a consumer."""

from __future__ import annotations

import json
import math

import pyarrow as pa
import pytest
from safetensors.torch import load_file, save_file

from tasks.contracts.errors import BadModel
from tasks.contracts.jobs import LossCheckJob, ScoreClassificationJob, ScoreLanguageJob
from tasks.evaluate import classification_program, language_program
from tasks.evaluate.language_inputs import Input
from tasks.evaluate.release_check import (
    check_loss,
    check_tokens,
    served_tokens,
    try_classifier,
)
from tasks.finetune import program as finetune_program
from tests.tasks.chat.conversations import ASK, LAST, SAY, TALK
from tests.tasks.conftest import DEVICE, Notes

PAIR = {"prompt": [ASK], "chosen": [SAY], "rejected": [LAST]}


class TestCheckLoss:
    @pytest.mark.parametrize("shipped", [1.0, 1.019, 0.981])
    def test_allows_what_rounding_does(self, shipped):
        check_loss(shipped, 1.0, 64)

    @pytest.mark.parametrize("shipped", [1.03, 0.97, math.nan, math.inf])
    def test_refuses_another_loss(self, shipped):
        with pytest.raises(BadModel, match=r"on 64 validation examples; expected 1\.0000"):
            check_loss(shipped, 1.0, 64)

    def test_of_a_large_loss_is_relative(self):
        check_loss(10.15, 10.0, 64)


@pytest.fixture(params=["text-classification", "instruction", "preference"])
def trained(request, train_job, lm_job):
    """A job that was run, and its result."""

    def train(**changes):
        if request.param == "text-classification":
            job = train_job(**changes)
        else:
            job = lm_job(task=request.param, **changes)
        return job, finetune_program.main(job, Notes())

    return train


@pytest.fixture
def check(tmp_path):
    """Checks a job's release in the program that scores it."""

    def check(job, result, before_checking=lambda: None):
        shared = {
            "model": job.out,
            "kind": job.ship,
            "base": job.base if job.ship == "adapter" else None,
            "quantization": job.quantization if job.ship == "adapter" else "none",
            "tokenizer": None,
            "device": DEVICE,
            "max_length": None,
            "examples": tmp_path / "unread",
            "batch_size": 8,
            "measure_latency": False,
            "check": LossCheckJob(examples=job.check_out, loss=result.check_loss),
            "out": tmp_path / "unwritten",
        }
        if job.task == "text-classification":
            examples = pa.table({"text": ["One text.", "Another, " * 99]})
            scorer = classification_program.Scorer(
                ScoreClassificationJob(**shared, labels=(), seed=0)
            )
        else:
            examples = [Input(0, [PAIR if job.task == "preference" else {"messages": TALK}])]
            scorer = language_program.Scorer(
                ScoreLanguageJob(
                    **shared,
                    task=job.task,
                    generate_tokens=0,
                    must_match="",
                    must_not_contain=(),
                    json_schema="",
                    beta=0.1,
                )
            )
        before_checking()
        scorer.check_release(LossCheckJob(examples=job.check_out, loss=result.check_loss), examples)

    return check


class TestARelease:
    @pytest.mark.parametrize(
        ("quantization", "ship", "precision"),
        [("nf4", "merged", "bf16"), ("nf4", "adapter", "fp32")],
    )
    def test_has_the_loss_that_it_was_trained_to(
        self, trained, check, quantization, ship, precision
    ):
        check(*trained(quantization=quantization, ship=ship, plan={"precision": precision}))

    def test_with_other_weights_is_refused(self, trained, check):
        job, result = trained()
        file = job.out / "model.safetensors"
        # Far enough from the trained ones for a model that has learned next to nothing.
        weights = {name: tensor * 3 for name, tensor in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(BadModel, match="the model that ships: found a loss of"):
            check(job, result)


class TestTokens:
    """A consumer gives the model what it was trained on."""

    def test_that_differ_are_refused(self):
        with pytest.raises(BadModel, match=r"other tokens for 1 of 3 examples, such as \[9\]"):
            check_tokens([[1], [2], [3]], [[1], [9], None])

    def test_of_another_chat_template_are_refused(self, lm_job, check):
        job = lm_job()
        result = finetune_program.main(job, Notes())
        template = job.out / "chat_template.jinja"
        check(job, result)
        # The scorer reads it when it is made, a consumer's tokenizer later.
        before = template.read_text()
        with pytest.raises(BadModel, match="the tokenizer that ships: found other tokens"):
            check(job, result, lambda: template.write_text(before + "!"))

    def test_of_a_text_that_has_its_own_special_tokens_are_up_to_the_consumer(self, tokenizer):
        begun = {"prompt": f"{tokenizer.eos_token}Once", "completion": " upon"}
        assert served_tokens(tokenizer, begun, chat=False) is None
        assert served_tokens(tokenizer, {"text": "Once"}, chat=False) is None
        plain = {"prompt": "Once", "completion": " upon"}
        assert served_tokens(tokenizer, plain, chat=False) == tokenizer.encode("Once")

    def test_of_tool_calls_are_up_to_the_consumer(self, tokenizer):
        assert served_tokens(tokenizer, {"messages": TALK, "tools": [{}]}, chat=True) is None


class TestForAConsumer:
    def test_a_generation_configuration_that_raises_is_refused(self, lm_job, check):
        job = lm_job()
        result = finetune_program.main(job, Notes())
        file = job.out / "generation_config.json"
        settings = json.loads(file.read_text()) | {"do_sample": True, "temperature": 0.0}
        file.write_text(json.dumps(settings))
        with pytest.raises(BadModel, match=r"pipeline\('text-generation'\), which raises"):
            check(job, result)

    def test_a_tokenizer_that_does_not_know_the_limit_is_refused(self, train_job, check):
        job = train_job()
        result = finetune_program.main(job, Notes())
        file = job.out / "tokenizer_config.json"
        settings = json.loads(file.read_text())
        del settings["model_max_length"]
        file.write_text(json.dumps(settings))
        with pytest.raises(BadModel, match="other tokens for 1 of 2 examples"):
            check(job, result)

    def test_a_classifier_that_raises_is_refused(self, tiny_base):
        from transformers import AutoModelForSequenceClassification

        model = AutoModelForSequenceClassification.from_pretrained(tiny_base)
        model.config.id2label = {0: "other"}
        with pytest.raises(BadModel, match=r"pipeline\('text-classification'\), which raises"):
            try_classifier(model.to(DEVICE), tiny_base, DEVICE)
