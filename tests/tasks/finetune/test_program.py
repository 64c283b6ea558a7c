"""The finetune program: reproducible bytes, its result, and the model that ships."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from tasks.contracts.errors import BadRecipe
from tasks.contracts.jobs import FinetuneResult
from tasks.contracts.results import Finetuned
from tasks.finetune import program as finetune_program
from tasks.models import adapter as adapter_
from tasks.runtime.run_program import run_program
from tasks.training.language import LanguageTrainer
from tests.tasks.conftest import LABELS, MAX_LENGTH, Notes, content
from tests.tasks.language_samples import END, randomize_adapter


def tensors(folder):
    return load_file(f"{folder}/model.safetensors")


def batch_of(base, texts):
    tokenizer = AutoTokenizer.from_pretrained(base)
    options = {"truncation": True, "max_length": MAX_LENGTH, "padding": True}
    return tokenizer(texts, return_tensors="pt", **options)


class TestSameJob:
    def test_gives_the_same_bytes_for_any_order_of_the_data(
        self, train_job, shards, news, tmp_path
    ):
        """The second job also runs in another process and folder."""
        shuffled = random.Random(1).sample(news, len(news))
        one = train_job(data=shards([news[:20], news[20:]]))
        two = train_job(data=shards([shuffled[:31], shuffled[31:40], shuffled[40:]]))
        first = finetune_program.main(one, Notes())
        progress = []
        second = run_program(
            "tasks.finetune.program",
            two,
            FinetuneResult,
            scratch=tmp_path / "s",
            on_progress=progress.append,
        )
        assert content(one.out) == content(two.out)
        assert first == second
        assert any("eval_accuracy" in line for line in progress)

    def test_gives_the_same_bytes_in_a_new_and_in_a_forked_process(
        self, train_job, shards, news, tmp_path, monkeypatch
    ):
        data, results = shards([news]), []
        for fork_server in ("on", "off"):
            monkeypatch.setenv("BURNISH_FORK_SERVER", fork_server)
            job = train_job(data=data, training={"epochs": 1})
            result = run_program(
                "tasks.finetune.program", job, FinetuneResult, scratch=tmp_path / fork_server
            )
            results.append((result, content(job.out)))
        assert results[0] == results[1]

    def test_with_another_seed_gives_another_model(self, train_job):
        one, two = train_job(training={"epochs": 1}), train_job(training={"epochs": 1, "seed": 18})
        for job in (one, two):
            finetune_program.main(job, Notes())
        assert content(one.out) != content(two.out)

    def test_micro_batches_change_the_losses_by_rounding_only(self, train_job):
        jobs = [train_job(training={"epochs": 1}, micro_batch_examples=size) for size in (0, 2)]
        whole, parts = (finetune_program.main(job, Notes()) for job in jobs)
        assert parts.steps == whole.steps
        # Adam turns rounding of tiny gradients into steps, so weights agree less than losses.
        losses = [
            [entry["loss"] for entry in run.history if "loss" in entry] for run in (whole, parts)
        ]
        assert np.allclose(*losses, atol=0.02)

    def test_halved_micro_batches_are_those_of_half_the_size(self, train_job, lm_job):
        sizes = ((train_job, "micro_batch_examples", 2), (lm_job, "micro_batch_tokens", 64))
        for make, field, size in sizes:
            halved = make(training={"epochs": 1}, **{field: 2 * size}, halvings=1)
            small = make(training={"epochs": 1}, **{field: size})
            for job in (halved, small):
                finetune_program.main(job, Notes())
            assert content(halved.out) == content(small.out)


class TestOperationWithoutDeterminism:
    def test_is_trained_with_a_warning(self, lm_job, monkeypatch):
        expected = finetune_program.main(lm_job(), Notes())
        batch_loss = LanguageTrainer.batch_loss

        def and_one_more(*args):
            torch.zeros(1).put_(torch.tensor([0]), torch.zeros(1))
            return batch_loss(*args)

        monkeypatch.setattr(LanguageTrainer, "batch_loss", and_one_more)
        result = finetune_program.main(lm_job(), Notes())
        (warning,) = result.warnings
        assert "put_ is not reproducible on this kind of device" in warning
        assert result.history == expected.history


class TestResult:
    def test_has_the_fields_of_the_contract(self, train_job):
        job = train_job()
        notes = Notes()
        result = finetune_program.main(job, notes)
        step_fields = {"schema_version", "artifact", "key", "provenance", "tokens_per_second"}
        step_fields |= {"check", "resumed"}
        assert set(type(result).model_fields) == set(Finetuned.model_fields) - step_fields
        assert set(result.metrics) == {"loss", "accuracy", "precision", "recall", "f1"}
        assert result.steps == 8
        evaluated = [entry for entry in result.history if "eval_loss" in entry]
        assert [entry["epoch"] for entry in evaluated] == [1.0, 2.0]
        assert {"step", "epoch", "loss", "learning_rate"} <= set(result.history[0])
        json.dumps(result.model_dump(mode="json"), allow_nan=False)

    def test_counts_trained_parameters(self, train_job, tiny_base):
        job = train_job(lora={"r": 2, "target_modules": ["query"]}, training={"epochs": 1})
        layers, hidden = 2, 32
        head = hidden * len(LABELS) + len(LABELS)
        assert (
            finetune_program.main(job, Notes()).trained_parameters == layers * 2 * 2 * hidden + head
        )

    def test_progress_is_reported(self, train_job):
        notes = Notes()
        finetune_program.main(train_job(training={"epochs": 1}), notes)
        steps = [line for line in notes.lines if "tokens_per_second" in line]
        assert {"step", "steps", "epoch", "loss", "learning_rate", "process_memory_mb"} <= set(
            steps[0]
        )
        assert 0 < steps[0]["tokens_per_second"] < 1e7
        assert any("eval_accuracy" in line for line in notes.lines)


class TestShippedClassifier:
    def test_loads_with_transformers(self, train_job, news):
        job = train_job()
        result = finetune_program.main(job, Notes())
        model = AutoModelForSequenceClassification.from_pretrained(job.out).eval()
        tokenizer = AutoTokenizer.from_pretrained(job.out)
        assert tokenizer.model_max_length == MAX_LENGTH
        assert model.config.label2id == {name: number for number, name in enumerate(LABELS)}
        assert model.config.problem_type == "single_label_classification"
        assert model.dtype == torch.float32
        assert not hasattr(model.config, "quantization_config")
        held_out = [row for number, row in enumerate(news) if number % 3 == 2]
        batch = tokenizer(
            [row["text"] for row in held_out], truncation=True, padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            predicted = model(**batch).logits.argmax(-1)
        truth = torch.tensor([LABELS.index(row["label"]) for row in held_out])
        accuracy = (predicted == truth).float().mean().item()
        assert accuracy == pytest.approx(result.metrics["accuracy"], abs=0.07)

    @pytest.mark.parametrize("ship", ["merged", "adapter"])
    def test_contains_no_pickle_and_no_local_path(self, train_job, ship, tmp_path):
        job = train_job(ship=ship, training={"epochs": 1})
        finetune_program.main(job, Notes())
        shipped = content(job.out)
        assert {name.rpartition(".")[2] for name in shipped} == {"json", "safetensors"}
        for name, data in shipped.items():
            for path in (str(job.base), str(job.work), str(tmp_path.parent)):
                assert path.encode() not in data, name

    def test_is_readable_by_all_users(self, train_job):
        job = train_job(training={"epochs": 1})
        finetune_program.main(job, Notes())
        modes = {path.stat().st_mode & 0o777 for path in job.out.iterdir()}
        assert modes == {0o644}

    @pytest.mark.parametrize(
        ("uri", "name", "revision"),
        [
            ("hf://owner/model@0123abc", "owner/model", "0123abc"),
            ("package:some_package/model#sha256=dd", "package:some_package/model#sha256=dd", None),
            ("s3://bucket/base#sha256=dd", "s3://bucket/base#sha256=dd", None),
            ("/home/me/base#sha256=dd", "sha256:" + "d" * 64, None),
        ],
    )
    def test_an_adapter_names_its_base(self, train_job, tmp_path, uri, name, revision):
        job = train_job(ship="adapter", base_pin={"uri": uri, "digest": "d" * 64})
        config = self.shipped_config(job, tmp_path)
        assert (config["base_model_name_or_path"], config["revision"]) == (name, revision)

    def shipped_config(self, job, tmp_path):
        model = finetune_program.make_task(job).model()
        adapter_.save_adapter(model, tmp_path / "adapter.safetensors")
        finetune_program.ship(job, tmp_path / "adapter.safetensors")
        with open(f"{job.out}/adapter_config.json") as file:
            return json.load(file)

    def test_an_adapter_includes_the_head(self, train_job, tiny_base, news):
        job = train_job(ship="adapter", quantization="none", training={"epochs": 1})
        merged = train_job(quantization="none", training={"epochs": 1})
        for each in (job, merged):
            finetune_program.main(each, Notes())
        base = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=3)
        adapter = PeftModel.from_pretrained(base, job.out).eval()
        whole = AutoModelForSequenceClassification.from_pretrained(merged.out).eval()
        batch = batch_of(tiny_base, [row["text"] for row in news])
        with torch.no_grad():
            assert torch.allclose(adapter(**batch).logits, whole(**batch).logits, atol=1e-4)

    def test_keeps_the_dtype_of_the_base(self, train_job, tiny_base, tmp_path):
        weights = load_file(tiny_base / "model.safetensors")
        half = shutil.copytree(tiny_base, tmp_path / "half")
        weights = {name: tensor.bfloat16() for name, tensor in weights.items()}
        save_file(weights, half / "model.safetensors", metadata={"format": "pt"})
        job = train_job(base=str(half), training={"epochs": 1})
        finetune_program.main(job, Notes())
        assert {tensor.dtype for tensor in tensors(job.out).values()} == {torch.bfloat16}


class TestShippedLanguageModel:
    def test_loads_with_transformers(self, lm_job, set_up, tmp_path):
        job = lm_job()
        _, model, data, _ = set_up(job)
        randomize_adapter(model)
        adapter_.save_adapter(model, tmp_path / "adapter.safetensors")
        finetune_program.ship(job, tmp_path / "adapter.safetensors")
        ids = torch.tensor(data[0].parts[0].ids, dtype=torch.long)[None]
        shipped = AutoModelForCausalLM.from_pretrained(job.out)
        with torch.no_grad():
            expected = model.eval()(input_ids=ids, use_cache=False).logits
            assert torch.allclose(shipped(input_ids=ids).logits, expected, atol=1e-5)
        assert shipped.config.tie_word_embeddings
        assert shipped.get_output_embeddings().weight is shipped.get_input_embeddings().weight
        assert "lm_head.weight" not in load_file(f"{job.out}/model.safetensors")

    def test_an_adapter_gives_the_same_outputs_on_its_base(self, lm_job, tiny_lm):
        jobs = [lm_job(ship=kind, training={"epochs": 1}) for kind in ("merged", "adapter")]
        for job in jobs:
            finetune_program.main(job, Notes())
        merged, adapter = (job.out for job in jobs)
        ids = torch.arange(100, 120)[None]
        base = AutoModelForCausalLM.from_pretrained(tiny_lm)
        with torch.no_grad():
            expected = AutoModelForCausalLM.from_pretrained(merged)(input_ids=ids).logits
            found = PeftModel.from_pretrained(base, adapter)(input_ids=ids).logits
        assert torch.allclose(found, expected, atol=1e-5)
        config = json.loads(Path(adapter, "adapter_config.json").read_text())
        assert config["task_type"] == "CAUSAL_LM"
        assert config["base_model_name_or_path"] == "sha256:" + "d" * 64

    @pytest.mark.parametrize("ship", ["merged", "adapter"])
    def test_keeps_the_chat_template_and_the_end_token(self, lm_job, tiny_lm, ship):
        job = lm_job(ship=ship, training={"epochs": 1})
        finetune_program.main(job, Notes())
        shipped = content(job.out)
        tokenizer = AutoTokenizer.from_pretrained(job.out)
        base = AutoTokenizer.from_pretrained(tiny_lm)
        assert tokenizer.chat_template == base.chat_template
        ends = GenerationConfig.from_pretrained(job.out).eos_token_id
        assert tokenizer.convert_tokens_to_ids(END) in (ends if isinstance(ends, list) else [ends])
        assert {name.rpartition(".")[2] for name in shipped} <= {"json", "safetensors", "jinja"}
        assert all(str(job.work).encode() not in data for data in shipped.values())
        modes = {path.stat().st_mode & 0o777 for path in job.out.iterdir()}
        assert modes == {0o644}

    def test_of_a_base_that_generates_greedily_does_not_sample(self, lm_job, tiny_lm, tmp_path):
        base = shutil.copytree(tiny_lm, tmp_path / "base")
        settings = json.loads((base / "generation_config.json").read_text())
        settings |= {"temperature": 0.6, "do_sample": False}
        (base / "generation_config.json").write_text(json.dumps(settings))
        job = lm_job(base=str(base), training={"epochs": 1})
        finetune_program.main(job, Notes())
        shipped = GenerationConfig.from_pretrained(job.out)
        assert (shipped.do_sample, shipped.temperature) == (False, None)

    def test_keeps_the_dtype_of_the_base(self, lm_job, tiny_lm, tmp_path):
        base = shutil.copytree(tiny_lm, tmp_path / "half")
        weights = load_file(base / "model.safetensors")
        weights = {name: tensor.bfloat16() for name, tensor in weights.items()}
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
        job = lm_job(base=str(base), training={"epochs": 1})
        finetune_program.main(job, Notes())
        shipped = load_file(f"{job.out}/model.safetensors")
        assert {tensor.dtype for tensor in shipped.values()} == {torch.bfloat16}

    @pytest.mark.parametrize(
        "lora", [{"rslora": True}, {"dora": True}, {"modules_to_save": ["lm_head"]}]
    )
    def test_equals_the_trained_model_for_every_kind_of_adapter(
        self, lm_job, set_up, tmp_path, lora
    ):
        job = lm_job(lora=lora)
        _, model, data, _ = set_up(job)
        randomize_adapter(model)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "modules_to_save" in name:
                parameter.data += 0.1
        adapter_.save_adapter(model, tmp_path / "adapter.safetensors")
        finetune_program.ship(job, tmp_path / "adapter.safetensors")
        ids = torch.tensor(data[0].parts[0].ids, dtype=torch.long)[None]
        with torch.no_grad():
            expected = model.eval()(input_ids=ids, use_cache=False).logits
            shipped = AutoModelForCausalLM.from_pretrained(job.out)(input_ids=ids).logits
        assert torch.allclose(shipped, expected, atol=1e-5)


class TestShippedQuantizedModel:
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_equals_the_trained_model(self, lm_job, set_up, tmp_path, precision):
        job = lm_job(quantization="nf4", plan={"precision": precision})
        _, model, data, _ = set_up(job)
        randomize_adapter(model)
        ids = torch.tensor(data[0].parts[0].ids, dtype=torch.long)[None]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            expected = model.eval()(input_ids=ids, use_cache=False).logits.float()
        adapter_.save_adapter(model, tmp_path / "adapter.safetensors")
        finetune_program.ship(job, tmp_path / "adapter.safetensors")
        plain = job.model_copy(update={"quantization": "none", "out": tmp_path / "plain"})
        finetune_program.ship(plain, tmp_path / "adapter.safetensors")
        shipped, other = (AutoModelForCausalLM.from_pretrained(each.out) for each in (job, plain))
        with torch.no_grad():
            error, error_unquantized = (
                (model(input_ids=ids).logits - expected).abs().max() for model in (shipped, other)
            )
        assert error < {"fp32": 1e-5, "bf16": 0.01}[precision]
        assert error_unquantized > 3 * error


class TestDevice:
    def test_cuda_is_refused_without_a_gpu(self, train_job):
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        plan = {"device": "cuda"}
        with pytest.raises(BadRecipe, match="without a usable GPU"):
            finetune_program.main(train_job(plan=plan), Notes())
