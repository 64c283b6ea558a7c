"""Training: the same bytes for the same job, what ships, and the traps on the way."""

import json
import math
import os
import random
import shutil
import socket
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from sklearn import metrics as sklearn_metrics
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerControl

from tasks.contracts.errors import BadData, BadRecipe, Preempted, TrainingDiverged
from tasks.contracts.jobs import FinetuneResult
from tasks.contracts.recipe_training import LoraRecipe
from tasks.contracts.results import Finetuned
from tasks.finetune import program as finetune_program
from tasks.models import adapter as adapter_
from tasks.models import classifier
from tasks.runtime.run_program import run_program
from tasks.training import callbacks
from tasks.training.classification_batches import (
    LengthGroupedSampler,
    LongestFirstSampler,
    PadCollator,
    gather,
)
from tasks.training.validation_metrics import ClassificationMetrics
from tests.tasks.conftest import LABELS, MAX_LENGTH, Notes, content


def tensors(folder):
    return load_file(f"{folder}/model.safetensors")


def batch_of(base, texts):
    tokenizer = AutoTokenizer.from_pretrained(base)
    options = {"truncation": True, "max_length": MAX_LENGTH, "padding": True}
    return tokenizer(texts, return_tensors="pt", **options)


class TestTheSameJob:
    def test_gives_the_same_bytes_whatever_the_order_of_the_data(
        self, train_job, shards, news, tmp_path
    ):
        """Also in another process, and written to another place."""
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

    def test_gives_the_same_bytes_in_a_fresh_process_and_in_a_forked_one(
        self, train_job, shards, news, tmp_path, monkeypatch
    ):
        data, results = shards([news]), []
        for way in ("on", "off"):
            monkeypatch.setenv("BURNISH_FORK_SERVER", way)
            job = train_job(data=data, training={"epochs": 1})
            result = run_program(
                "tasks.finetune.program", job, FinetuneResult, scratch=tmp_path / way
            )
            results.append((result, content(job.out)))
        assert results[0] == results[1]

    @pytest.mark.parametrize("ship", ["merged", "adapter"])
    def test_gives_the_same_bytes_when_it_is_interrupted(self, train_job, ship):
        whole = train_job(ship=ship, lora={"dropout": 0.1})
        expected = finetune_program.main(whole, Notes())
        job = train_job(ship=ship, lora={"dropout": 0.1})
        for stop_at in (2, 6):  # Within the first epoch, and within the second.
            notes = Notes(stop_at=stop_at)
            with pytest.raises(Preempted, match="a checkpoint of step"):
                finetune_program.main(job, notes)
            saved = [line["checkpoint"] for line in notes.lines if "checkpoint" in line]
            moved = f"{job['work']}-elsewhere-{stop_at}"
            shutil.move(saved[-1], moved)
            shutil.rmtree(job.work)
            job = job.model_copy(update={"resume_from": Path(moved)})
        assert finetune_program.main(job, Notes()) == expected
        assert content(job.out) == content(whole.out)

    def test_with_another_seed_gives_another_model(self, train_job):
        one, two = train_job(training={"epochs": 1}), train_job(training={"epochs": 1, "seed": 18})
        for job in (one, two):
            finetune_program.main(job, Notes())
        assert content(one.out) != content(two.out)

    def test_starts_afresh_from_half_a_checkpoint(self, train_job, tmp_path):
        job = train_job(training={"epochs": 1}, resume_from=str(tmp_path / "half"))
        (tmp_path / "half").mkdir()
        (tmp_path / "half" / "trainer_state.json").write_text("{")
        assert finetune_program.main(job, Notes()).steps > 0

    def test_in_micro_batches_gives_the_same_model_up_to_rounding(self, train_job):
        jobs = [train_job(training={"epochs": 1}, micro_batch_examples=size) for size in (0, 2)]
        whole, parts = (finetune_program.main(job, Notes()) for job in jobs)
        assert parts.steps == whole.steps
        # Adam turns rounding of tiny gradients into steps, so weights agree less than losses.
        losses = [
            [entry["loss"] for entry in run.history if "loss" in entry] for run in (whole, parts)
        ]
        assert np.allclose(*losses, atol=0.02)


class TestACancelledRun:
    def test_leaves_a_checkpoint_that_another_goes_on_from(self, train_job, tmp_path):
        job = train_job(training={"epochs": 1000})

        class Cancelled(BaseException):
            pass

        def cancel(line):
            if line.get("step", 0) >= 3:
                raise Cancelled

        with pytest.raises(Cancelled):
            run_program(
                "tasks.finetune.program",
                job,
                FinetuneResult,
                scratch=tmp_path / "s",
                on_progress=cancel,
            )
        newest = max(job.work.glob("checkpoints/*/complete"), key=os.path.getmtime).parent
        reached = json.loads((newest / "trainer_state.json").read_text())["global_step"]
        notes = Notes(stop_at=0)
        with pytest.raises(Preempted):
            finetune_program.main(job.model_copy(update={"resume_from": newest}), notes)
        began = next(line["step"] for line in notes.lines if "step" in line)
        assert began == reached >= 3


class TestTheResult:
    def test_is_what_the_contract_wants(self, train_job):
        job = train_job()
        notes = Notes()
        result = finetune_program.main(job, notes)
        own = {"schema_version", "artifact", "key", "provenance", "tokens_per_second"}
        assert set(result) == set(Finetuned.model_fields) - own
        assert set(result.metrics) == {"loss", "accuracy", "precision", "recall", "f1"}
        assert result.steps == 8
        evaluated = [entry for entry in result.history if "eval_loss" in entry]
        assert [entry["epoch"] for entry in evaluated] == [1.0, 2.0]
        assert {"step", "epoch", "loss", "learning_rate"} <= set(result.history[0])
        json.dumps(result, allow_nan=False)

    def test_counts_what_was_trained(self, train_job, tiny_base):
        job = train_job(lora={"r": 2, "target_modules": ["query"]}, training={"epochs": 1})
        layers, hidden = 2, 32
        head = hidden * len(LABELS) + len(LABELS)
        assert (
            finetune_program.main(job, Notes()).trained_parameters == layers * 2 * 2 * hidden + head
        )

    def test_is_reported_as_it_comes(self, train_job):
        notes = Notes()
        finetune_program.main(train_job(training={"epochs": 1}), notes)
        steps = [line for line in notes.lines if "tokens_per_second" in line]
        assert {"step", "steps", "epoch", "loss", "learning_rate", "memory_mb"} <= set(steps[0])
        assert 0 < steps[0]["tokens_per_second"] < 1e7
        assert any("eval_accuracy" in line for line in notes.lines)


class TestQuantisation:
    @pytest.fixture
    def trained(self, tiny_base):
        """An nf4 base with an adapter that is not the identity."""
        base, heads = classifier.load_classifier(
            tiny_base,
            LABELS,
            seed=1,
            dtype=torch.float32,
            quantization="nf4",
            head_modules=["classifier"],
        )
        lora = LoraRecipe(r=4, alpha=8, dropout=0.0)
        model = adapter_.attach_lora(base, lora, heads, seed=1)
        torch.manual_seed(2)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1)
        return model

    def first_layer_gradient(self, model, batch):
        torch.manual_seed(0)  # The head has dropout.
        model.train().zero_grad()
        labels = torch.arange(len(batch["input_ids"])) % len(LABELS)
        model(**batch, labels=labels).loss.backward()
        name = "encoder.layer.0.attention.self.query.lora_A"
        return next(p.grad.clone() for n, p in model.named_parameters() if name in n)

    def test_keeps_the_gradients_of_the_first_layer_after_an_evaluation(
        self, trained, tiny_base, news
    ):
        batch = batch_of(tiny_base, [row["text"] for row in news[:6]])
        before = self.first_layer_gradient(trained, batch)
        with torch.no_grad():
            trained.eval()(**batch)
        after = self.first_layer_gradient(trained, batch)
        assert before.abs().max() > 0
        assert torch.equal(before, after)

    def test_leaves_the_head_alone(self, trained):
        kinds = {type(m).__name__ for m in trained.classifier.modules()}
        assert "Linear4bit" not in kinds
        assert "Linear4bit" in {type(m).__name__ for m in trained.modules()}

    def test_is_double(self, trained):
        layer = trained.get_submodule("base_model.model.bert.encoder.layer.0.output.dense")
        state = layer.base_layer.weight.quant_state
        assert (state.quant_type, state.nested) == ("nf4", True)

    def test_ships_the_model_that_was_trained(self, train_job, trained, tiny_base, news, tmp_path):
        batch = batch_of(tiny_base, [row["text"] for row in news])
        with torch.no_grad():
            expected = trained.eval()(**batch).logits
        adapter_.save_adapter(trained, tmp_path / "adapter.safetensors")
        lora = {"r": 4, "alpha": 8, "dropout": 0.0}
        job = train_job(lora=lora, training={"seed": 1})
        finetune_program.ship(job, tmp_path / "adapter.safetensors")
        shipped = AutoModelForSequenceClassification.from_pretrained(job.out).eval()
        plain = train_job(lora=lora, training={"seed": 1}, quantization="none")
        finetune_program.ship(plain, tmp_path / "adapter.safetensors")
        other = AutoModelForSequenceClassification.from_pretrained(plain.out).eval()
        with torch.no_grad():
            assert torch.allclose(shipped(**batch).logits, expected, atol=1e-4)
            # Merged into the base as it was before quantisation it is another model.
            assert not torch.allclose(other(**batch).logits, expected, atol=1e-2)


class TestWhatShips:
    def test_is_an_ordinary_model(self, train_job, news):
        job = train_job()
        result = finetune_program.main(job, Notes())
        model = AutoModelForSequenceClassification.from_pretrained(job.out).eval()
        tokenizer = AutoTokenizer.from_pretrained(job.out)
        assert tokenizer.model_max_length == MAX_LENGTH
        assert model.config.label2id == {name: number for number, name in enumerate(LABELS)}
        assert model.config.problem_type == "single_label_classification"
        assert model.dtype == torch.float32
        assert not hasattr(model.config, "quantization_config")
        held_out = [row for place, row in enumerate(news) if place % 3 == 2]
        batch = tokenizer(
            [row["text"] for row in held_out], truncation=True, padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            found = model(**batch).logits.argmax(-1)
        truth = torch.tensor([LABELS.index(row["label"]) for row in held_out])
        accuracy = (found == truth).float().mean().item()
        assert accuracy == pytest.approx(result.metrics["accuracy"], abs=0.07)

    @pytest.mark.parametrize("ship", ["merged", "adapter"])
    def test_holds_no_pickle_and_no_path_of_this_machine(self, train_job, ship, tmp_path):
        job = train_job(ship=ship, training={"epochs": 1})
        finetune_program.main(job, Notes())
        shipped = content(job.out)
        assert {name.rpartition(".")[2] for name in shipped} == {"json", "safetensors"}
        for name, data in shipped.items():
            for place in (str(job.base), str(job.work), str(tmp_path.parent)):
                assert place.encode() not in data, name

    def test_may_be_read_by_others(self, train_job):
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
    def test_as_an_adapter_names_its_base(self, train_job, tmp_path, uri, name, revision):
        job = train_job(ship="adapter", base_pin={"uri": uri, "digest": "d" * 64})
        config = self.shipped_config(job, tmp_path)
        assert (config["base_model_name_or_path"], config["revision"]) == (name, revision)

    def shipped_config(self, job, tmp_path):
        model = finetune_program.make_task(job).model()
        adapter_.save_adapter(model, tmp_path / "adapter.safetensors")
        finetune_program.ship(job, tmp_path / "adapter.safetensors")
        with open(f"{job['out']}/adapter_config.json") as file:
            return json.load(file)

    def test_as_an_adapter_brings_the_head_along(self, train_job, tiny_base, news):
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

    def test_keeps_the_number_format_of_the_base(self, train_job, tiny_base, tmp_path):
        weights = load_file(tiny_base / "model.safetensors")
        half = shutil.copytree(tiny_base, tmp_path / "half")
        weights = {name: tensor.bfloat16() for name, tensor in weights.items()}
        save_file(weights, half / "model.safetensors", metadata={"format": "pt"})
        job = train_job(base=str(half), training={"epochs": 1})
        finetune_program.main(job, Notes())
        assert {tensor.dtype for tensor in tensors(job.out).values()} == {torch.bfloat16}


class TestPrecision:
    def test_bf16_trains_adapter_and_head_in_fp32(self, train_job):
        plan = {"precision": "bf16"}
        model = finetune_program.make_task(train_job(plan=plan, quantization="none")).model()
        trained = {p.dtype for p in model.parameters() if p.requires_grad}
        frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
        assert (trained, frozen) == ({torch.float32}, {torch.bfloat16})
        job = train_job(plan=plan)
        assert math.isfinite(finetune_program.main(job, Notes()).metrics["loss"])


class TestABadLoss:
    def test_ends_training_at_once(self, train_job, tiny_base, tmp_path):
        broken = shutil.copytree(tiny_base, tmp_path / "broken")
        weights = load_file(broken / "model.safetensors")
        weights["embeddings.LayerNorm.bias"][0] = float("inf")
        save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(TrainingDiverged) as caught:
            finetune_program.main(train_job(base=str(broken)), Notes())
        assert caught.value.where == "training.learning_rate"
        assert caught.value.found == "loss nan at step 1"

    def test_on_validation_ends_training(self, tmp_path):
        best = callbacks.BestEpoch(tmp_path / "best", "accuracy", 0, None)
        state = SimpleNamespace(epoch=1.0, global_step=9)
        found = {f"eval_{name}": 0.5 for name in ("accuracy", "precision", "recall", "f1")}
        with pytest.raises(TrainingDiverged, match="validation loss nan"):
            best.on_evaluate(None, state, TrainerControl(), found | {"eval_loss": math.nan}, None)


class TestTheBestEpoch:
    @pytest.fixture
    def rate(self, tmp_path, monkeypatch):
        """Feeds epochs to `Best`; returns it and where training stopped."""
        monkeypatch.setattr(adapter_, "save_adapter", lambda model, file: file.write_text(model))

        def rate(values, metric="accuracy", patience=0):
            best = callbacks.BestEpoch(tmp_path / "best", metric, patience, None)
            for epoch, value in enumerate(values, start=1):
                control = TrainerControl()
                found = dict.fromkeys(("eval_precision", "eval_recall", "eval_f1"), 0.5)
                found |= {"eval_accuracy": 0.5, "eval_loss": 1.0, f"eval_{metric}": value}
                state = SimpleNamespace(epoch=float(epoch), global_step=epoch)
                best.on_evaluate(None, state, control, found, f"weights of {epoch}")
                if control.should_training_stop:
                    return best, epoch
            return best, None

        return rate

    def test_is_kept(self, rate):
        best, _ = rate([0.5, 0.9, 0.7])
        assert best.epoch == 2.0
        assert best.adapter.read_text() == "weights of 2"

    def test_is_the_first_of_equals(self, rate):
        assert rate([0.9, 0.9])[0].epoch == 1.0

    def test_by_loss_is_the_lowest(self, rate):
        assert rate([0.9, 0.3, 0.5], metric="loss")[0].epoch == 2.0

    def test_stops_training_when_none_better_follows(self, rate):
        best, stopped = rate([0.5, 0.9, 0.8, 0.9, 0.95], patience=2)
        assert (best.epoch, stopped, best.ended) == (2.0, 4, True)


class TestExamples:
    def test_are_in_the_order_of_their_hashes(self, shards, news, tmp_path):
        found = []
        for place, rows in enumerate((news, news[::-1])):
            data = shards([rows[:10], rows[10:]])
            part = gather(
                data["shards"], data["keep_file"], LABELS, "train", tmp_path / f"{place}.arrow"
            )
            found.append([(row["labels"], row["input_ids"].tolist()) for row in part])
        assert found[0] == found[1]

    def test_of_an_empty_split_are_refused(self, shards, news, tmp_path):
        data = shards([news], splits=("train",))
        with pytest.raises(BadData, match="validation split"):
            gather(data["shards"], data["keep_file"], LABELS, "validation", tmp_path / "v.arrow")

    def test_with_an_unknown_label_are_refused(self, shards, news, tmp_path):
        data = shards([news])
        with pytest.raises(BadData, match="label 'tech'"):
            gather(data["shards"], data["keep_file"], LABELS[:2], "train", tmp_path / "t.arrow")

    def test_that_do_not_belong_to_the_data_are_refused(self, shards, news, tmp_path):
        one, two = shards([news]), shards([news[:9]])
        mixed = [one["shards"][0].model_copy(update={"tokens": two["shards"][0].tokens})]
        with pytest.raises(BadData, match="9 rows of tokens"):
            gather(mixed, one["keep_file"], LABELS, "train", tmp_path / "t.arrow")


class TestBatches:
    lengths = np.random.default_rng(0).integers(5, 200, size=203)

    def batches(self, epoch, size=8, seed=1):
        sampler = LengthGroupedSampler(self.lengths, size, seed)
        sampler.set_epoch(epoch)
        order = list(sampler)
        return [order[start : start + size] for start in range(0, len(order), size)]

    def test_hold_every_example_once(self):
        assert sorted(chain(*self.batches(0))) == list(range(203))
        assert [len(batch) for batch in self.batches(1)][-1] == 3

    def test_follow_from_seed_and_epoch_alone(self):
        assert self.batches(1) == self.batches(1)
        assert self.batches(1) != self.batches(2)
        assert self.batches(1) != self.batches(1, seed=2)

    def test_hold_examples_of_like_length(self):
        def padding(batches):
            return sum(max(self.lengths[b]) * len(b) - sum(self.lengths[b]) for b in batches)

        at_random = np.split(np.random.default_rng(1).permutation(200), 25)
        assert padding(self.batches(0)[:-1]) < 0.4 * padding(at_random)

    def test_begin_with_the_largest(self):
        sums = [self.lengths[batch].sum() for batch in self.batches(0)]
        assert sums[0] == max(sums)

    def test_of_an_evaluation_run_from_long_to_short(self):
        order = self.lengths[list(LongestFirstSampler(self.lengths))]
        assert (np.diff(order) <= 0).all()

    @pytest.mark.parametrize(("side", "first"), [("right", [7, 8, 0]), ("left", [0, 7, 8])])
    def test_are_padded_on_the_tokenizers_side(self, side, first):
        tokenizer = SimpleNamespace(pad_token_id=0, pad_token_type_id=0, padding_side=side)
        rows = [np.array([7, 8]), np.array([7, 8, 9])]
        batch = PadCollator(tokenizer)([{"input_ids": ids, "labels": 1} for ids in rows])
        assert batch["input_ids"][0].tolist() == first
        assert batch["attention_mask"][0].tolist() == [int(token > 0) for token in first]


class TestMetrics:
    def test_are_those_of_scikit_learn_and_need_no_network(self, tmp_path, monkeypatch):
        def refuse(*_, **__):
            raise AssertionError("the network was asked")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        truth, guess = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 0, 2])
        found = ClassificationMetrics(tmp_path)(guess, truth)
        assert found == {
            "accuracy": pytest.approx(4 / 6),
            "precision": sklearn_metrics.precision_score(truth, guess, average="macro"),
            "recall": sklearn_metrics.recall_score(truth, guess, average="macro"),
            "f1": sklearn_metrics.f1_score(truth, guess, average="macro"),
        }

    def test_count_a_class_that_is_never_predicted_as_0(self, tmp_path):
        found = ClassificationMetrics(tmp_path)(np.array([0, 0]), np.array([0, 1]))
        assert found["recall"] == 0.5
        assert found["precision"] == 0.25


class TestTargets:
    def test_that_match_nothing_are_refused(self, train_job):
        with pytest.raises(BadRecipe, match="no linear layer named q_proj") as caught:
            finetune_program.make_task(train_job(lora={"target_modules": ["q_proj"]})).model()
        assert "query" in caught.value.expected

    def test_are_all_linear_layers_but_the_head(self, train_job):
        model = finetune_program.make_task(train_job()).model()
        adapted = {n.rpartition(".lora_A")[0] for n, _ in model.named_parameters() if "lora_A" in n}
        assert len(adapted) == 2 * 6 + 1
        assert not any("classifier" in name for name in adapted)

    def test_and_a_gpu_that_is_not_there_are_refused(self, train_job):
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        plan = {"device": "cuda"}
        with pytest.raises(BadRecipe, match="without a usable GPU"):
            finetune_program.main(train_job(plan=plan), Notes())
