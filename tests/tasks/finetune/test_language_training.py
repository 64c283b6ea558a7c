"""Training language models: targets, what ships, and known traps."""

import hashlib
import json
import math
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GenerationConfig,
    GPT2Config,
)

from tasks.contracts.errors import BadData, BadModel, BadRecipe, Preempted, TrainingDiverged
from tasks.contracts.jobs import FinetuneJob, PinnedBase, TokenShard
from tasks.contracts.plan import Plan
from tasks.contracts.recipe_training import LoraRecipe, TrainingRecipe
from tasks.contracts.results import Finetuned
from tasks.finetune import program as finetune_program
from tasks.models import adapter as adapter_
from tasks.models import causal
from tasks.training import language
from tasks.training.history import unmoved
from tasks.training.language_batches import Example, Part, gather_tokens, make_batch
from tasks.training.micro_batches import Steps, fill, in_order
from tests.tasks.conftest import Notes, content

COLORS = ("red", "green", "blue", "yellow", "black", "white", "brown", "pink")
THINGS = ("car", "house", "tree", "river", "bird", "stone")
END = "<|im_end|>"


def sentence(place):
    """A prompt and its answer; the lengths differ."""
    color, thing = COLORS[place % len(COLORS)], THINGS[place % len(THINGS)]
    return f"{' very' * (place % 11)} {color} {thing} is", f" {color} and {thing}"


@pytest.fixture(scope="session")
def tokenizer(tiny_lm):
    return AutoTokenizer.from_pretrained(tiny_lm)


@pytest.fixture(scope="session")
def bold_lm(tiny_lm, tmp_path_factory):
    """The same with a loud last norm: what leaves the small model's own can prefer no token."""
    folder = shutil.copytree(tiny_lm, tmp_path_factory.mktemp("bold") / "lm")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 30
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture(scope="session")
def lm_data(tmp_path_factory, tokenizer):
    """Writes tokens of `count` examples, in shards; returns the job's part about data."""

    def encode(prompt, answer):
        ids = tokenizer(prompt)["input_ids"]
        said = tokenizer(answer + END)["input_ids"]
        return ids + said, [0] * len(ids) + [1] * len(said)

    def rows_of(place, pairs):
        prompt, answer = sentence(place)
        # Every fourth example has the same prompt as the one before, and another answer.
        if place % 4 == 3:
            prompt = sentence(place - 1)[0]
        high, low = np.frombuffer(hashlib.sha256(prompt.encode()).digest()[:16], np.uint64)
        sides = [answer, " no idea at all"] if pairs else [answer]
        for side, text in enumerate(sides):
            ids, loss_mask = encode(prompt, text)
            yield {
                "side": side,
                "hash_hi": high,
                "hash_lo": low,
                "input_ids": ids,
                "loss_mask": loss_mask,
                "length": len(ids),
                "truncated": False,
            }

    def write(places=range(40), cuts=(), pairs=False):
        folder = tmp_path_factory.mktemp("tokens")
        listed, keep = [], {}
        for number, part in enumerate(np.split(np.array(places), list(cuts))):
            name, rows = f"{number}-{len(part)}", []
            for row, place in enumerate(part.tolist()):
                rows += [{"row": row, **each} for each in rows_of(place, pairs)]
            types = {
                "row": pa.uint32(),
                "side": pa.uint8(),
                "hash_hi": pa.uint64(),
                "hash_lo": pa.uint64(),
                "input_ids": pa.list_(pa.int32()),
                "loss_mask": pa.list_(pa.uint8()),
                "length": pa.int32(),
                "truncated": pa.bool_(),
            }
            table = pa.Table.from_pylist(rows, pa.schema(types))
            pq.write_table(table, folder / f"{name}.parquet", row_group_size=7)
            listed.append(TokenShard(digest=name, tokens=folder / f"{name}.parquet"))
            keep[name] = np.where(part % 5 == 4, 2, 1).astype(np.uint8)
        np.savez(folder / "keep.npz", **keep)
        return {"shards": tuple(listed), "keep_file": folder / "keep.npz"}

    return write


@pytest.fixture
def lm_job(tiny_lm, lm_data, tmp_path):
    """A job for `tasks.finetune.program`; give what differs."""
    made = []

    def make(data=None, training=None, lora=None, plan=None, **changes):
        place = tmp_path / f"run{len(made)}"
        made.append(place)
        recipe = {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3, "best_by": "loss"}
        settled = {"device": "cpu", "precision": "fp32", "attention": "packed", "packing": True}
        pairs = changes.get("task") == "preference"
        fields = {
            "task": "instruction",
            "base": tiny_lm,
            "base_pin": PinnedBase(uri=str(tiny_lm), digest="d" * 64),
            "tokenizer": tiny_lm,
            **(data or lm_data(pairs=pairs)),
            "labels": [],
            "head_modules": [],
            "lora": LoraRecipe(**{"r": 4, "dropout": 0.0, **(lora or {})}),
            "quantization": "none",
            "training": TrainingRecipe(**recipe | (training or {})),
            "plan": Plan(**settled | (plan or {})),
            "ship": "merged",
            "micro_batch_examples": 0,
            "micro_batch_tokens": 0,
            "max_micro_batch_tokens": 0,
            "tight_memory": False,
            "work": place / "work",
            "resume_from": None,
            "out": place / "out",
        }
        return FinetuneJob(**fields | changes)

    return make


@pytest.fixture
def set_up(tmp_path):
    """Builds all that training has, without training: the task, its model, data and trainer."""

    def build(job):
        job.work.mkdir(parents=True, exist_ok=True)
        finetune_program.prepare(job.plan, job.training.seed)
        task = finetune_program.make_task(job)
        data = [task.examples(split, job.work / split) for split in ("train", "validation")]
        model = task.model()
        return task, model, data[0], task.trainer(model, *data, [])

    return build


def shake(model):
    """An adapter that is not the identity."""
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)


def adapter_of(job):
    return load_file(job.work / "best" / "adapter.safetensors")


def mean_loss(model, examples):
    """The mean over target tokens, each example alone, by transformers' own code."""
    total, count = 0.0, 0
    for example in examples:
        for part in example.parts:
            ids = torch.tensor(part.ids, dtype=torch.long)
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
            nats = F.cross_entropy(logits, ids[1:], reduction="none")
            wanted = torch.tensor(part.loss_mask[1:]) > 0
            total, count = total + nats[wanted].sum(), count + int(wanted.sum())
    return total / count


class TestTheLossOfAStep:
    @pytest.mark.parametrize(
        "plan", [{}, {"packing": False, "attention": "sdpa"}, {"attention": "sdpa"}]
    )
    @pytest.mark.parametrize("budget", [25, 4096])
    def test_is_the_mean_over_all_target_tokens_of_examples_alone(
        self, lm_job, set_up, plan, budget
    ):
        """However it is cut, padded or packed; and so are its gradients."""
        _, model, data, trainer = set_up(lm_job(plan=plan, micro_batch_tokens=budget))
        shake(model)
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

    def test_needs_no_gradient_checkpointing_to_be_the_same_with_it(self, lm_job, set_up):
        gradients = []
        for checkpointing in (False, True):
            _, model, data, trainer = set_up(lm_job(plan={"checkpointing": checkpointing}))
            shake(model)
            trainer.training_step(model, {"examples": [data[number] for number in range(9)]})
            gradients.append([p.grad for p in model.parameters() if p.requires_grad])
        for one, other in zip(*gradients, strict=True):
            assert torch.allclose(one, other, atol=1e-7)

    def test_in_bf16_is_near_and_so_are_its_gradients(self, lm_job, set_up):
        found, gradients = [], []
        for precision in ("fp32", "bf16"):
            _, model, data, trainer = set_up(lm_job(plan={"precision": precision}))
            shake(model)
            found.append(trainer.training_step(model, {"examples": [data[0], data[1]]}).item())
            trained = [p for p in model.parameters() if p.requires_grad]
            assert {p.dtype for p in trained} == {p.grad.dtype for p in trained} == {torch.float32}
            gradients.append(torch.cat([p.grad.flatten() for p in trained]))
        assert found[1] == pytest.approx(found[0], rel=0.01)
        assert F.cosine_similarity(*gradients, dim=0) > 0.99

    def test_of_other_heads_is_right_too(self, lm_job, set_up):
        """A head that is trained itself is asked by way of its logits."""
        _, model, data, trainer = set_up(lm_job(lora={"modules_to_save": ["lm_head"]}))
        assert not trainer.forward.skips_logits
        examples = [data[number] for number in range(5)]
        loss = trainer.training_step(model, {"examples": examples})
        assert loss.item() == pytest.approx(mean_loss(model, examples).item(), rel=1e-6)

    def test_after_three_steps_has_made_the_same_weights_however_it_was_cut(self, lm_job):
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


class TestOtherArchitectures:
    @pytest.mark.parametrize(
        ("config", "packs"),
        [
            (GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=49152), True),
            # Its scores are capped, and so are its logits.
            (
                Gemma2Config(
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    num_key_value_heads=2,
                    head_dim=16,
                    vocab_size=49152,
                ),
                False,
            ),
        ],
    )
    def test_train_right_or_unpacked(self, lm_job, set_up, tokenizer, tmp_path, config, packs):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
        model.save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        task, model, data, trainer = set_up(lm_job(base=str(tmp_path / "base")))
        assert trainer.forward.packing == packs
        assert bool(task.warnings) != packs
        examples = [data[number] for number in range(5)]
        loss = trainer.training_step(model, {"examples": examples})
        model.get_base_model().set_attn_implementation("eager")
        assert loss.item() == pytest.approx(mean_loss(model, examples).item(), rel=1e-5)


class TestTheSameJob:
    def test_gives_the_same_bytes_whatever_the_order_of_the_data(self, lm_job, lm_data):
        places = list(range(40))
        shuffled = np.random.default_rng(1).permutation(40)
        one = lm_job(data=lm_data(places, cuts=[17]))
        two = lm_job(data=lm_data(shuffled, cuts=[9, 30]))
        assert finetune_program.main(one, Notes()) == finetune_program.main(two, Notes())
        assert content(one.out) == content(two.out)

    @pytest.mark.parametrize("task", ["instruction", "preference"])
    def test_gives_the_same_bytes_when_it_is_interrupted(self, lm_job, task):
        whole = lm_job(task=task, lora={"dropout": 0.1})
        expected = finetune_program.main(whole, Notes())
        job = lm_job(task=task, lora={"dropout": 0.1})
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


class TestTheResult:
    def test_is_what_the_contract_wants(self, lm_job):
        notes = Notes()
        result = finetune_program.main(lm_job(), notes)
        own = {"schema_version", "artifact", "key", "provenance", "tokens_per_second"}
        assert set(result) == set(Finetuned.model_fields) - own
        assert set(result.metrics) == {"loss", "perplexity", "accuracy"}
        assert result.metrics["perplexity"] == pytest.approx(math.exp(result.metrics["loss"]))
        assert result.warnings == ()
        json.dumps(result, allow_nan=False)
        steps = [line for line in notes.lines if "tokens_per_second" in line]
        assert {"step", "steps", "epoch", "loss", "learning_rate", "memory_mb"} <= set(steps[0])
        assert 0 < steps[0]["tokens_per_second"] < 1e7
        assert any("eval_perplexity" in line for line in notes.lines)

    def test_has_the_metrics_of_examples_alone(self, lm_job, set_up):
        _, model, _, trainer = set_up(lm_job(micro_batch_tokens=40))
        shake(model)
        found = trainer.evaluate()
        examples = [trainer.eval_dataset[n] for n in range(len(trainer.eval_dataset))]
        with torch.no_grad():
            assert found["eval_loss"] == pytest.approx(mean_loss(model, examples).item(), rel=1e-6)

    def test_warns_where_nothing_moved(self):
        still = [{"loss": 2.0, "grad_norm": 0.0}] * 6
        assert "never moved" in unmoved(still)
        assert unmoved([*still[:5], {"loss": 1.0, "grad_norm": 0.0}]) is None
        assert unmoved([{"loss": 2.0, "grad_norm": 0.1}] * 6) is None


class TestWhatIsLearnt:
    def test_makes_the_loss_fall_and_the_model_stop_after_its_answer(
        self, lm_job, lm_data, tokenizer, bold_lm
    ):
        """The pad token of the base is its end token: whoever masks it never learns to stop."""
        job = lm_job(
            data=lm_data([0, 1, 2, 4] * 6),
            base=bold_lm,
            lora={"r": 16},
            training={"epochs": 12, "learning_rate": 1e-2, "batch_size": 6},
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

    def test_is_the_best_epoch(self, lm_job, bold_lm):
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


class TestQuantisation:
    def test_keeps_the_gradients_of_the_first_layer_after_an_evaluation(self, lm_job, set_up):
        _, model, data, trainer = set_up(lm_job(quantization="nf4"))
        shake(model)
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

    def test_leaves_the_head_alone(self, lm_job):
        model = finetune_program.make_task(lm_job(quantization="nf4")).model()
        assert type(model.get_output_embeddings()) is torch.nn.Linear
        assert "Linear4bit" in {type(m).__name__ for m in model.modules()}

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_ships_the_model_that_was_trained(self, lm_job, set_up, tmp_path, precision):
        job = lm_job(quantization="nf4", plan={"precision": precision})
        _, model, data, _ = set_up(job)
        shake(model)
        ids = torch.tensor(data[0].parts[0].ids, dtype=torch.long)[None]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            expected = model.eval()(input_ids=ids, use_cache=False).logits.float()
        adapter_.save_adapter(model, tmp_path / "adapter.safetensors")
        finetune_program.ship(job, tmp_path / "adapter.safetensors")
        plain = job.model_copy(update={"quantization": "none", "out": tmp_path / "plain"})
        finetune_program.ship(plain, tmp_path / "adapter.safetensors")
        shipped, other = (AutoModelForCausalLM.from_pretrained(j.out) for j in (job, plain))
        with torch.no_grad():
            own, others = (
                (model(input_ids=ids).logits - expected).abs().max() for model in (shipped, other)
            )
        assert own < {"fp32": 1e-5, "bf16": 0.01}[precision]
        assert others > 3 * own


class TestWhatShips:
    def test_is_an_ordinary_model(self, lm_job, set_up, tmp_path):
        job = lm_job()
        _, model, data, _ = set_up(job)
        shake(model)
        adapter_.save_adapter(model, tmp_path / "adapter.safetensors")
        finetune_program.ship(job, tmp_path / "adapter.safetensors")
        ids = torch.tensor(data[0].parts[0].ids, dtype=torch.long)[None]
        shipped = AutoModelForCausalLM.from_pretrained(job.out)
        with torch.no_grad():
            expected = model.eval()(input_ids=ids, use_cache=False).logits
            assert torch.allclose(shipped(input_ids=ids).logits, expected, atol=1e-5)
        assert shipped.config.tie_word_embeddings
        assert shipped.get_output_embeddings().weight is shipped.get_input_embeddings().weight
        assert "lm_head.weight" not in load_file(f"{job['out']}/model.safetensors")

    def test_as_an_adapter_does_the_same_on_its_base(self, lm_job, tiny_lm):
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
    def test_generates_and_chats_as_it_was_trained(self, lm_job, tiny_lm, ship):
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

    def test_with_a_generation_config_that_contradicts_itself_ships_all_the_same(
        self, lm_job, tiny_lm, tmp_path
    ):
        base = shutil.copytree(tiny_lm, tmp_path / "base")
        settings = json.loads((base / "generation_config.json").read_text())
        settings |= {"temperature": 0.6, "do_sample": False}
        (base / "generation_config.json").write_text(json.dumps(settings))
        job = lm_job(base=str(base), training={"epochs": 1})
        finetune_program.main(job, Notes())
        assert GenerationConfig.from_pretrained(job.out).temperature == 0.6

    def test_keeps_the_number_format_of_the_base(self, lm_job, tiny_lm, tmp_path):
        base = shutil.copytree(tiny_lm, tmp_path / "half")
        weights = load_file(base / "model.safetensors")
        weights = {name: tensor.bfloat16() for name, tensor in weights.items()}
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
        job = lm_job(base=str(base), training={"epochs": 1})
        finetune_program.main(job, Notes())
        shipped = load_file(f"{job['out']}/model.safetensors")
        assert {tensor.dtype for tensor in shipped.values()} == {torch.bfloat16}

    @pytest.mark.parametrize(
        "lora", [{"rslora": True}, {"dora": True}, {"modules_to_save": ["lm_head"]}]
    )
    def test_is_what_was_trained_with_other_adapters(self, lm_job, set_up, tmp_path, lora):
        job = lm_job(lora=lora)
        _, model, data, _ = set_up(job)
        shake(model)
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


class TestPreference:
    def test_begins_at_ln_2(self, lm_job, set_up):
        _, model, data, trainer = set_up(lm_job(task="preference", micro_batch_tokens=60))
        loss = trainer.training_step(model, {"examples": [data[0], data[1], data[2]]})
        assert loss.item() == pytest.approx(math.log(2), abs=1e-5)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)

    def test_is_the_loss_of_the_paper(self, lm_job, set_up):
        _, model, data, trainer = set_up(lm_job(task="preference"))
        shake(model)
        model.eval()
        pair = data[3]

        def likelihood(part):
            ids = torch.tensor(part.ids, dtype=torch.long)
            chances = model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
            targets = [n for n in range(1, len(ids)) if part.loss_mask[n]]
            return sum(chances[n - 1, ids[n]] for n in targets)

        with torch.no_grad():
            own = [likelihood(part) for part in pair.parts]
            with model.disable_adapter():
                reference = [likelihood(part) for part in pair.parts]
        margin = 0.1 * ((own[0] - reference[0]) - (own[1] - reference[1]))
        loss = trainer.training_step(model, {"examples": [pair]})
        assert loss.item() == pytest.approx(-F.logsigmoid(margin).item(), abs=1e-5)

    def test_is_learnt(self, lm_job, bold_lm):
        job = lm_job(task="preference", base=bold_lm, training={"epochs": 3})
        result = finetune_program.main(job, Notes())
        assert set(result.metrics) == {"loss", "accuracy", "margin"}
        assert result.metrics["loss"] < 0.5 * math.log(2)
        assert result.metrics["accuracy"] == 1.0
        assert result.metrics["margin"] > 0

    def test_steps_do_not_depend_on_micro_batches(self, lm_job, set_up):
        losses = []
        for budget in (30, 4096):
            job = lm_job(task="preference", micro_batch_tokens=budget)
            _, model, data, trainer = set_up(job)
            shake(model)
            losses.append(
                trainer.training_step(model, {"examples": list(map(data.__getitem__, range(7)))})
            )
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)


class TestABadLoss:
    def test_ends_training_at_once(self, lm_job, tiny_lm, tmp_path):
        broken = shutil.copytree(tiny_lm, tmp_path / "broken")
        weights = load_file(broken / "model.safetensors")
        weights["model.norm.weight"][0] = float("inf")
        save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(TrainingDiverged) as caught:
            finetune_program.main(lm_job(base=str(broken)), Notes())
        assert caught.value.found.endswith("at step 1")


class TestABadBase:
    def test_without_some_of_its_weights_is_refused(self, lm_job, tiny_lm, tmp_path):
        broken = shutil.copytree(tiny_lm, tmp_path / "broken")
        weights = load_file(broken / "model.safetensors")
        del weights["model.norm.weight"]
        save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(BadModel, match="1 tensors missing"):
            finetune_program.make_task(lm_job(base=str(broken))).model()

    def test_gets_no_adapter_on_its_head(self, lm_job):
        with pytest.raises(BadRecipe, match="the output embedding"):
            finetune_program.make_task(lm_job(lora={"target_modules": ["lm_head"]})).model()
        names = [
            name for name, _ in finetune_program.make_task(lm_job()).model().named_parameters()
        ]
        assert not any("lm_head.lora" in name for name in names)
        assert sum("lora_A" in name for name in names) == 2 * 7


class TestMemory:
    def test_that_is_too_small_halves_the_micro_batch(self, lm_job, set_up, monkeypatch):
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


class TestExamples:
    def test_of_one_prompt_are_all_there_in_one_order(self, lm_data, tmp_path):
        found = []
        for number, places in enumerate((np.arange(40), np.arange(40)[::-1])):
            data = lm_data(places, cuts=[11])
            part = gather_tokens(
                data["shards"], data["keep_file"], "train", tmp_path / str(number), pairs=False
            )
            found.append([each.parts[0].ids.tolist() for each in part])
            assert part.lengths.tolist() == [len(ids) for ids in found[-1]]
        assert len(found[0]) == 32
        assert found[0] == found[1]

    def test_without_anything_to_learn_are_left_out(self, lm_data, tmp_path):
        data = lm_data()
        file = data["shards"][0].tokens
        table = pq.read_table(file)
        silent = [[0] * len(marks) for marks in table.column("loss_mask").to_pylist()]
        column = pa.array(silent, pa.list_(pa.uint8()))
        pq.write_table(table.set_column(5, "loss_mask", column), file)
        with pytest.raises(BadData, match="no examples with target tokens"):
            gather_tokens(data["shards"], data["keep_file"], "train", tmp_path / "t", pairs=False)

    def test_of_pairs_stay_pairs_across_the_files_batches(self, lm_data, tmp_path, monkeypatch):
        monkeypatch.setattr("tasks.training.language_batches.ROWS_PER_READ", 3)
        data = lm_data(pairs=True)
        found = gather_tokens(
            data["shards"], data["keep_file"], "train", tmp_path / "t", pairs=True
        )
        assert len(found) == 32
        starts = [[part.ids[:3].tolist() for part in each.parts] for each in found]
        assert all(one == other for one, other in starts)

    def test_of_other_data_are_refused(self, lm_data, tmp_path):
        one, two = lm_data(range(40)), lm_data(range(9))
        mixed = [two["shards"][0].model_copy(update={"tokens": one["shards"][0].tokens})]
        with pytest.raises(BadData, match="row 39 of 9"):
            gather_tokens(mixed, two["keep_file"], "train", tmp_path / "t", pairs=False)


class TestSteps:
    lengths = np.random.default_rng(0).integers(5, 200, size=203)

    def steps(self, epoch, rank=0, world_size=1, seed=1):
        sampler = Steps(self.lengths, 8, seed, rank, world_size)
        sampler.batch_sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler) == 26
        return list(sampler)

    def test_hold_every_example_once(self):
        assert sorted(chain(*self.steps(0))) == list(range(203))
        assert len(self.steps(1)[-1]) == 3

    def test_follow_from_seed_and_epoch_alone(self):
        assert self.steps(1) == self.steps(1)
        assert self.steps(1) != self.steps(2)
        assert self.steps(1) != self.steps(1, seed=2)

    def test_are_the_same_for_several_processes_together(self):
        shares = [self.steps(1, rank, 3) for rank in range(3)]
        together = [sorted(chain(*step)) for step in zip(*shares, strict=True)]
        assert together == [sorted(step) for step in self.steps(1)]
        loads = np.array(
            [[self.lengths[part].sum() for part in step] for step in zip(*shares, strict=True)]
        )
        assert np.ptp(loads[:-1], axis=1).mean() < 0.15 * loads[:-1].sum(axis=1).mean()

    def test_begin_with_the_longest_example(self):
        assert self.lengths[self.steps(0)[0]].max() == self.lengths.max()


class TestMicroBatches:
    lengths = np.random.default_rng(0).integers(2, 90, size=60)

    def examples(self):
        return [
            Example(number, (Part(np.arange(length), np.ones(length, np.uint8)),))
            for number, length in enumerate(self.lengths.tolist())
        ]

    @pytest.mark.parametrize("packing", [True, False])
    def test_hold_every_example_once_and_no_more_than_fits(self, packing):
        for parts in (
            [[each.number for each in part] for part in fill(self.examples(), 200, packing)],
            list(in_order(self.lengths, 200, packing)),
        ):
            assert sorted(chain(*parts)) == list(range(60))
            for part in parts:
                lengths = self.lengths[part]
                size = lengths.sum() if packing else lengths.max() * len(part)
                assert size <= 200 or len(part) == 1

    def test_packed_are_hardly_more_than_the_least_number(self):
        least = math.ceil(self.lengths.sum() / 200)
        assert len(fill(self.examples(), 200, True)) <= least + 1

    def test_longer_than_all_that_fits_come_alone(self):
        parts = fill(self.examples(), 10, True)
        assert all(len(part) == 1 for part in parts if part[0].tokens > 10)

    @pytest.mark.parametrize("packing", [True, False])
    def test_name_the_positions_before_target_tokens(self, packing):
        parts = [
            Part(np.array([5, 6, 7, 8]), np.array([0, 0, 1, 1], np.uint8)),
            Part(np.array([3, 4]), np.array([0, 1], np.uint8)),
        ]
        examples = [Example(number, (part,)) for number, part in enumerate(parts)]
        batch = make_batch(examples, packing, "cpu")
        flat = batch.inputs["input_ids"].flatten()
        assert flat[batch.target_positions].tolist() == [6, 7, 3]
        assert batch.targets.tolist() == [7, 8, 4]
        assert batch.sequence_ids.tolist() == [0, 0, 1]
        assert batch.tokens == 6


class TestTheCompiledModel:
    @pytest.mark.slow
    def test_trains_as_the_other_does(self, lm_job):
        jobs = [
            lm_job(plan={"compile": each}, training={"epochs": 1}, micro_batch_tokens=100)
            for each in (False, True)
        ]
        one, other = (finetune_program.main(job, Notes()) for job in jobs)
        assert other.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=1e-3)


class TestTheBudget:
    def test_of_a_processor_holds_the_longest_example(self):
        assert language.token_budget(None, {"device": "cpu"}, 9000) == 9000
        assert language.token_budget(None, {"device": "cpu"}, 90) == language.CPU_TOKENS

    def test_is_no_more_than_was_forecast_to_fit(self):
        assert language.token_budget(None, {"device": "cpu"}, 90, most=512) == 512
        assert language.token_budget(None, {"device": "cpu"}, 900, most=512) == 900


class TestLayers:
    def test_are_found(self, tiny_lm):
        model = causal.load_causal(tiny_lm)
        assert len(causal.decoder_layers(model)) == 2
