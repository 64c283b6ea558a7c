"""Training language models: losses, results, and reproducibility."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
)

from tasks.contracts.errors import TrainingDiverged
from tasks.contracts.plan import Plan
from tasks.contracts.results import Finetuned
from tasks.finetune import program as finetune_program
from tasks.training import language
from tests.tasks.conftest import Notes, content
from tests.tasks.language_samples import END, adapter_of, mean_loss, randomize_adapter, sentence


class TestStep:
    @pytest.mark.parametrize(
        "plan", [{}, {"packing": False, "attention": "sdpa"}, {"attention": "sdpa"}]
    )
    @pytest.mark.parametrize("budget", [25, 4096])
    def test_loss_and_gradients_are_the_mean_over_target_tokens(self, lm_job, set_up, plan, budget):
        """For every budget, padded or packed, compared with each example alone."""
        _, model, data, trainer = set_up(lm_job(plan=plan, micro_batch_tokens=budget))
        randomize_adapter(model)
        examples = [data[number] for number in range(13)]
        loss = trainer.training_step(model, {"examples": examples})
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        model.zero_grad()
        model.get_base_model().set_attn_implementation("eager")
        expected = mean_loss(model, examples)
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert torch.allclose(found[name], parameter.grad, atol=1e-6), name

    def test_gradient_checkpointing_changes_no_gradient(self, lm_job, set_up):
        gradients = []
        for checkpointing in (False, True):
            _, model, data, trainer = set_up(lm_job(plan={"checkpointing": checkpointing}))
            randomize_adapter(model)
            trainer.training_step(model, {"examples": [data[number] for number in range(9)]})
            gradients.append([p.grad for p in model.parameters() if p.requires_grad])
        for one, other in zip(*gradients, strict=True):
            assert torch.allclose(one, other, atol=1e-7)

    def test_bf16_changes_loss_and_gradients_by_rounding_only(self, lm_job, set_up):
        found, gradients = [], []
        for precision in ("fp32", "bf16"):
            _, model, data, trainer = set_up(lm_job(plan={"precision": precision}))
            randomize_adapter(model)
            found.append(trainer.training_step(model, {"examples": [data[0], data[1]]}).item())
            trained = [p for p in model.parameters() if p.requires_grad]
            assert {p.dtype for p in trained} == {p.grad.dtype for p in trained} == {torch.float32}
            gradients.append(torch.cat([p.grad.flatten() for p in trained]))
        assert found[1] == pytest.approx(found[0], rel=0.01)
        assert F.cosine_similarity(*gradients, dim=0) > 0.99

    def test_a_trained_head_gives_the_same_loss(self, lm_job, set_up):
        """The losses of a trained head are computed from its logits."""
        _, model, data, trainer = set_up(lm_job(lora={"modules_to_save": ["lm_head"]}))
        assert not trainer.forward.skips_logits
        examples = [data[number] for number in range(5)]
        loss = trainer.training_step(model, {"examples": examples})
        assert loss.item() == pytest.approx(mean_loss(model, examples).item(), rel=1e-6)

    def test_micro_batches_do_not_change_the_weights(self, lm_job):
        jobs = [
            lm_job(training={"epochs": 1, "batch_size": 11}, micro_batch_tokens=size)
            for size in (30, 100, 0)
        ]
        for job in jobs:
            assert finetune_program.main(job, Notes()).steps == 3
        one, *others = (adapter_of(job) for job in jobs)
        for other in others:
            for name, tensor in one.items():
                assert torch.allclose(tensor, other[name], atol=1e-5), name


class TestSameJob:
    def test_gives_the_same_bytes_for_any_order_of_the_data(self, lm_job, lm_data):
        places = list(range(40))
        shuffled = np.random.default_rng(1).permutation(40)
        one = lm_job(data=lm_data(places, cuts=[17]))
        two = lm_job(data=lm_data(shuffled, cuts=[9, 30]))
        assert finetune_program.main(one, Notes()) == finetune_program.main(two, Notes())
        assert content(one.out) == content(two.out)


class TestResult:
    def test_has_the_fields_of_the_contract(self, lm_job):
        notes = Notes()
        result = finetune_program.main(lm_job(), notes)
        own = {"schema_version", "artifact", "key", "provenance", "tokens_per_second", "check"}
        own |= {"resumed"}
        assert set(type(result).model_fields) == set(Finetuned.model_fields) - own
        assert set(result.metrics) == {"loss", "perplexity", "accuracy"}
        assert result.metrics["perplexity"] == pytest.approx(math.exp(result.metrics["loss"]))
        assert result.warnings == ()
        json.dumps(result.model_dump(mode="json"), allow_nan=False)
        steps = [line for line in notes.lines if "tokens_per_second" in line]
        assert {"step", "steps", "epoch", "loss", "learning_rate", "process_memory_mb"} <= set(
            steps[0]
        )
        assert 0 < steps[0]["tokens_per_second"] < 1e7
        assert any("eval_perplexity" in line for line in notes.lines)

    def test_metrics_equal_those_of_each_example_alone(self, lm_job, set_up):
        _, model, _, trainer = set_up(lm_job(micro_batch_tokens=40))
        randomize_adapter(model)
        found = trainer.evaluate()
        examples = [trainer.eval_dataset[n] for n in range(len(trainer.eval_dataset))]
        with torch.no_grad():
            assert found["eval_loss"] == pytest.approx(mean_loss(model, examples).item(), rel=1e-6)


class TestTraining:
    def test_lowers_the_loss_and_the_model_stops_after_its_answer(
        self, lm_job, lm_data, tokenizer, bold_lm
    ):
        """The base pads with its end token: if padding were masked by id, it would never stop."""
        job = lm_job(
            data=lm_data([0, 1, 2, 4] * 6),
            base=bold_lm,
            lora={"r": 16},
            training={"epochs": 12, "learning_rate": 1e-2, "batch_size": 6, "warmup": 0},
        )
        result = finetune_program.main(job, Notes())
        logged = [entry["loss"] for entry in result.history if "loss" in entry]
        assert logged[-1] < 0.05 * logged[0]
        model = AutoModelForCausalLM.from_pretrained(job.out)
        prompt, answer = sentence(1)
        asked = tokenizer(prompt, return_tensors="pt")
        said = model.generate(**asked, max_new_tokens=20, do_sample=False)[0]
        said = said[asked["input_ids"].shape[1] :]
        assert tokenizer.decode(said) == answer + END

    def test_keeps_the_best_epoch(self, lm_job, bold_lm):
        training = {"epochs": 6, "learning_rate": 0.1, "batch_size": 4, "schedule": "constant"}
        job = lm_job(base=bold_lm, training=training)
        result = finetune_program.main(job, Notes())
        epochs = [entry for entry in result.history if "eval_loss" in entry]
        best = min(epochs, key=lambda entry: entry["eval_loss"])
        assert (result.best_epoch, result.metrics["loss"]) == (
            best["epoch"],
            best["eval_loss"],
        )
        assert best is not epochs[-1], "choose another learning rate: this one never overshoots"


class TestQuantization:
    def test_an_evaluation_does_not_change_later_gradients(self, lm_job, set_up):
        _, model, data, trainer = set_up(lm_job(quantization="nf4"))
        randomize_adapter(model)
        examples = [data[number] for number in range(6)]

        def first_layer():
            model.zero_grad()
            trainer.training_step(model, {"examples": examples})
            name = "layers.0.self_attn.q_proj.lora_A"
            return next(p.grad.clone() for n, p in model.named_parameters() if name in n)

        before = first_layer()
        trainer.evaluate()
        assert before.abs().max() > 0
        assert torch.equal(first_layer(), before)


class TestInfiniteLoss:
    def test_stops_training_at_once(self, lm_job, tiny_lm, tmp_path):
        broken = shutil.copytree(tiny_lm, tmp_path / "broken")
        weights = load_file(broken / "model.safetensors")
        weights["model.norm.weight"][0] = float("inf")
        save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(TrainingDiverged) as caught:
            finetune_program.main(lm_job(base=str(broken)), Notes())
        assert caught.value.found.endswith("at step 1")


class TestOutOfMemory:
    def test_halves_the_micro_batch(self, lm_job, set_up, monkeypatch):
        task, model, data, trainer = set_up(lm_job(micro_batch_tokens=400))
        examples = [data[number] for number in range(20)]
        expected = trainer.training_step(model, {"examples": examples})
        wanted = [p.grad.clone() for p in model.parameters() if p.requires_grad]
        model.zero_grad()
        real, sizes = trainer.batch_loss, []

        def limited(model, batch):
            loss = real(model, batch)
            sizes.append(batch.tokens)
            if batch.tokens > 120:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return loss

        monkeypatch.setattr(trainer, "batch_loss", limited)
        loss = trainer.training_step(model, {"examples": examples})
        assert trainer.budget == 100
        assert len(task.warnings) == 2
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        found = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(wanted, found, strict=True))


class TestCompiledModel:
    @pytest.mark.slow
    def test_trains_like_the_uncompiled_model(self, lm_job):
        jobs = [
            lm_job(plan={"compile": each}, training={"epochs": 1}, micro_batch_tokens=100)
            for each in (False, True)
        ]
        one, other = (finetune_program.main(job, Notes()) for job in jobs)
        assert other.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=1e-3)


class TestTokenBudget:
    plan = Plan(device="cpu", precision="fp32")

    def test_on_a_cpu_fits_the_longest_example(self):
        assert language.token_budget(None, self.plan, 9000, most=0) == 9000
        assert language.token_budget(None, self.plan, 90, most=0) == language.CPU_TOKENS

    def test_is_at_most_the_forecast(self):
        assert language.token_budget(None, self.plan, 90, most=512) == 512
        assert language.token_budget(None, self.plan, 900, most=512) == 900
