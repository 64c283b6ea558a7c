"""What ships is what was trained, and works for a consumer."""

from __future__ import annotations

import json
import math

import pytest
from safetensors.torch import load_file, save_file

from tasks.contracts.errors import BadModel
from tasks.contracts.jobs import LossCheckJob, ScoreClassificationJob, ScoreLanguageJob
from tasks.evaluate import classification_program, language_program
from tasks.evaluate.release_check import check_loss
from tasks.finetune import program as finetune_program
from tests.tasks.conftest import Notes


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

    def check(job, result):
        shared = {
            "model": job.out,
            "kind": job.ship,
            "base": job.base if job.ship == "adapter" else None,
            "quantization": job.quantization if job.ship == "adapter" else "none",
            "tokenizer": None,
            "device": "cpu",
            "max_length": None,
            "examples": tmp_path / "unread",
            "batch_size": 8,
            "measure_latency": False,
            "check": LossCheckJob(examples=job.check_out, loss=result.check_loss),
            "out": tmp_path / "unwritten",
        }
        if job.task == "text-classification":
            scorer = classification_program.Scorer(
                ScoreClassificationJob(**shared, labels=(), seed=0)
            )
        else:
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
        scorer.check_release(LossCheckJob(examples=job.check_out, loss=result.check_loss))

    return check


class TestARelease:
    @pytest.mark.parametrize(
        ("quantization", "ship", "precision"),
        [("none", "merged", "fp32"), ("nf4", "merged", "bf16"), ("nf4", "adapter", "fp32")],
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
        with pytest.raises(BadModel, match=r"pipeline\('text-classification'\), which raises"):
            check(job, result)
