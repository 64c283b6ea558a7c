"""The forecast as a step of a run: what it is asked, what it settles and refuses, how it reads."""

import pytest
from transformers import LlamaConfig

from tasks.contracts import forecast
from tasks.contracts.artifacts import Artifact
from tasks.contracts.errors import BadRecipe
from tasks.contracts.forecast import Forecast, Remedy, Workload
from tasks.contracts.recipe import Recipe
from tasks.contracts.results import Finetuned, Inspected, Loaded, Provenance, Tokenized
from tasks.plan import forecast_step, preflight
from tasks.plan import plan as plan_plan
from tasks.report import markdown
from tasks.runtime import hardware
from tasks.runtime.context import RunContext
from tasks.storage.sources import resolve

PARTS = {"weights": 16 * 10**9, "activations": 9 * 10**9, "transient": 10**9}


def artifact(kind):
    return Artifact(kind=kind, digest="d", files=1, bytes=1, uri="")


def recipe(tmp_path, **changes):
    data = {
        "name": "r",
        "task": "instruction",
        "data": {"uri": "d"},
        "model": {"uri": "m", "ship": "adapter"},
        "store": str(tmp_path / "store"),
        "training": {"max_length": 128, "batch_size": 8, "epochs": 2},
    }
    return Recipe.model_validate(data | changes).settled()


def loaded():
    return Loaded(
        artifact=artifact("dataset"),
        labels=(),
        rows={"train": 80, "validation": 10, "test": 10},
        test_digest="t",
        new_shards=0,
        shards=1,
    )


def tokenized(**changes):
    facts = {"shards": 1, "new_shards": 0, "tokens": 6000, "truncated": 0, "longest": 500}
    return Tokenized(artifact=artifact("tokens"), **facts | {"target_tokens": 2999} | changes)


def inspected():
    return Inspected(
        artifact=artifact("tokenizer"),
        architecture="LlamaForCausalLM",
        parameters=1,
        max_length=None,
        linear_modules=(),
        head_modules=(),
        pad_token="",
        vocabulary=10,
        shape={"hidden": 32},
    )


def told(**changes):
    facts = {
        "artifact": artifact("forecast"),
        "device": "cuda",
        "parts": PARTS,
        "memory": 24 * 10**9,
        "reserve": 2 * 10**9,
        "fits": False,
        "micro_batch_tokens": 2048,
        "trained_parameters": 1_000_000,
    }
    return Forecast(**facts | changes)


@pytest.fixture
def base(tmp_path):
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
    )
    config.save_pretrained(tmp_path / "base")
    # A model's folder must have some; nobody looks into them.
    (tmp_path / "base" / "model.safetensors").write_bytes(b"weights")
    return resolve(str(tmp_path / "base"), "model")


@pytest.fixture
def context(tmp_path):
    return RunContext(store=str(tmp_path / "store"), run_id="run 1")


@pytest.fixture
def asked(monkeypatch):
    """What the step is asked, where nothing of Prefect is around it."""
    seen = []

    def once(inputs, context):
        seen.append(inputs)
        return step_itself.once(inputs, context)

    step_itself = forecast_step.forecast
    monkeypatch.setattr(forecast_step, "forecast", once)
    return seen


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(plan_plan, "count_gpus", lambda: 0)


class TestAForecast:
    def test_of_a_small_model_fits_this_machine(self, tmp_path, base, context, asked, no_gpu):
        wanted = recipe(tmp_path)
        made = plan_plan.make_plan(wanted)
        found = forecast_step.tell(wanted, base, inspected(), tokenized(), loaded(), made, context)
        assert not found.unknown and found.fits and not found.checkpointing
        assert found.memory > found.reserve > 0
        # Eight examples of 60 tokens, twice that for a heavy step, to the next power of two.
        assert found.micro_batch_tokens == 1024 and found.longest == 128
        assert asked[0].target_share == 0.5
        preflight.refuse_memory(wanted, found)
        assert plan_plan.make_plan(wanted, told=found).checkpointing is False

    def test_of_a_declared_card_is_of_that_card(self, tmp_path, base, context, asked, no_gpu):
        wanted = recipe(tmp_path, plan={"device_memory_gb": 1.2})
        made = plan_plan.make_plan(wanted)
        found = forecast_step.tell(wanted, base, inspected(), tokenized(), loaded(), made, context)
        assert found.memory == 1_200_000_000 and not found.fits
        with pytest.raises(BadRecipe) as error:
            preflight.refuse_memory(wanted, found)
        assert error.value.where == "plan.device_memory_gb"

    def test_of_pairs_knows_that_both_sides_go_together(
        self, tmp_path, base, context, monkeypatch, no_gpu
    ):
        seen = []
        monkeypatch.setattr(forecast_step, "forecast", lambda inputs, context: seen.append(inputs))
        wanted = recipe(tmp_path, task="preference")
        forecast_step.tell(
            wanted, base, inspected(), tokenized(), loaded(), plan_plan.make_plan(wanted), context
        )
        assert seen[0].longest == 256

    def test_is_the_same_for_a_few_rows_more(self, tmp_path, base, context, monkeypatch, no_gpu):
        seen = []
        monkeypatch.setattr(forecast_step, "forecast", lambda inputs, context: seen.append(inputs))
        wanted = recipe(tmp_path)
        for more in (tokenized(), tokenized(tokens=6100, target_tokens=3049)):
            forecast_step.tell(
                wanted, base, inspected(), more, loaded(), plan_plan.make_plan(wanted), context
            )
        assert seen[0].key_part() == seen[1].key_part()

    def test_is_another_on_another_processor(self, tmp_path, base, context, monkeypatch, no_gpu):
        seen = []
        monkeypatch.setattr(forecast_step, "forecast", lambda inputs, context: seen.append(inputs))
        wanted = recipe(tmp_path)
        made = plan_plan.make_plan(wanted)
        for cores in (2, 64):
            monkeypatch.setattr(
                forecast_step, "device_kind", lambda _, cores=cores: f"EPYC, {cores} cores"
            )
            forecast_step.tell(wanted, base, inspected(), tokenized(), loaded(), made, context)
        on_card = made.model_copy(update={"device": "cuda"})
        forecast_step.tell(wanted, base, inspected(), tokenized(), loaded(), on_card, context)
        assert seen[0].key_part() != seen[1].key_part()
        assert seen[2].hardware == ""


class TestThePlan:
    def test_checkpoints_where_the_forecast_had_to(self, tmp_path, no_gpu):
        made = plan_plan.make_plan(recipe(tmp_path), told=told(checkpointing=True, fits=True))
        assert made.checkpointing and "longest example" in made.why["checkpointing"]

    def test_does_as_the_recipe_says(self, tmp_path, no_gpu):
        wanted = recipe(tmp_path, plan={"checkpointing": "off"})
        made = plan_plan.make_plan(wanted, told=told(checkpointing=True))
        assert not made.checkpointing and made.why["checkpointing"] == plan_plan.SAID


class TestARefusal:
    def test_names_what_would_help_and_what_it_brings(self, tmp_path):
        remedies = (
            Remedy(change="quantization: nf4", peak=11_200_000_000, fits=True),
            Remedy(change="lora.dropout: 0", peak=25 * 10**9, fits=False),
        )
        with pytest.raises(BadRecipe) as error:
            preflight.refuse_memory(recipe(tmp_path), told(remedies=remedies))
        assert error.value.where == "training.max_length"
        assert "26.0 GB" in error.value.found and "weights 16.0 GB" in error.value.found
        assert "22.0 GB" in error.value.expected
        assert error.value.fix == (
            "quantization: nf4 would bring it to 11.2 GB; lora.dropout: 0 only to 25.0 GB"
        )

    def test_names_the_card_where_nothing_helps(self, tmp_path):
        with pytest.raises(BadRecipe) as error:
            preflight.refuse_memory(recipe(tmp_path), told())
        # 26 GB and the driver's 0.6, of which a twentieth more is left alone.
        assert error.value.fix == "use a card of 28.0 GB, or a smaller base model"

    def test_is_for_merging_on_the_card_too(self, tmp_path):
        small = told(parts={"weights": 10**9}, shipping=30 * 10**9)
        with pytest.raises(BadRecipe) as error:
            preflight.refuse_memory(recipe(tmp_path), small)
        assert error.value.where == "model.ship"
        assert "30.0 GB of the card's memory" in error.value.found
        assert error.value.fix == "set model.ship to adapter, or use a card of 32.2 GB"
        # Of a GGUF file, no adapter can ship.
        with pytest.raises(BadRecipe) as error:
            preflight.refuse_memory(recipe(tmp_path), small, gguf_base=True)
        assert error.value.fix == "use a card of 32.2 GB"

    @pytest.mark.parametrize("memory", [24 * 10**9, 0])
    def test_is_for_merging_in_the_machine_too(self, tmp_path, memory):
        small = told(
            parts={"weights": 10**9},
            memory=memory,
            shipping_host=30 * 10**9,
            host_memory=32 * 10**9,
            host_reserve=4 * 10**9,
        )
        with pytest.raises(BadRecipe) as error:
            preflight.refuse_memory(recipe(tmp_path), small)
        assert error.value.where == "model.ship"
        assert "30.0 GB of the machine's memory" in error.value.found
        assert error.value.expected == (
            "at most 28.0 GB (32.0 GB of the machine, less 4.0 GB left alone)"
        )
        assert error.value.fix == "set model.ship to adapter, or use a machine of 34.4 GB"

    @pytest.mark.parametrize("changes", [{"fits": True}, {"unknown": "why"}, {"memory": 0}])
    def test_is_not_made_on_a_guess(self, tmp_path, changes):
        preflight.refuse_memory(recipe(tmp_path), told(**changes))


class TestMemoryThatIsGivenBackAtOnce:
    @pytest.mark.parametrize(
        ("device", "shipping", "tight"),
        # Training takes 26 GB: 65 with all that glibc may keep.
        [("cpu", 0, True), ("cuda", 0, False), ("cuda", 23 * 10**9, False), ("cuda", 25e9, True)],
    )
    def test_is_the_machines_where_it_is_short(self, device, shipping, tight):
        host = {"host_memory": 64 * 10**9, "host_reserve": 4 * 10**9}
        found = told(device=device, shipping_host=int(shipping), **host)
        assert forecast.must_be_tight(found) is tight

    def test_is_not_asked_for_where_nobody_knows(self):
        assert not forecast.must_be_tight(told(device="cpu"))


class TestScoring:
    def test_of_whole_models_that_the_card_has_no_room_for_is_warned_of(self):
        large = inspected().model_copy(
            update={"parameters": 13 * 10**9, "shape": {"stored_bytes": 2}}
        )
        (warning,) = forecast_step.scoring_warnings(large, told())
        assert "whole models of 26.00 GB" in warning and "room for 22.00 GB" in warning
        assert not forecast_step.scoring_warnings(large, told(device="cpu"))
        assert not forecast_step.scoring_warnings(inspected(), told())


class TestTime:
    def finetuned(self, **changes):
        made = Provenance(run_id="run 1", run_name="", at="", seconds=1, libraries={}, code="")
        facts = {"metrics": {}, "history": (), "best_epoch": 1, "steps": 1}
        return Finetuned(
            artifact=artifact("model"),
            trained_parameters=1,
            provenance=made,
            **facts | {"tokens_per_second": 50.0} | changes,
        )

    def load(self, wanted, made, context):
        return forecast_step.workload(wanted, inspected(), tokenized(), loaded(), made, context)

    def test_is_unknown_until_a_like_model_was_trained(self, tmp_path, context, no_gpu):
        wanted = recipe(tmp_path)
        made = plan_plan.make_plan(wanted)
        before = self.load(wanted, made, context)
        assert (before.tokens, before.steps, before.seconds) == (4800, 20, None)
        forecast_step.remember_throughput(wanted, inspected(), made, self.finetuned(), context)
        assert self.load(wanted, made, context).seconds == 2 * 4800 / 50
        other = made.model_copy(update={"checkpointing": True})
        assert self.load(wanted, other, context).seconds is None

    def test_of_another_run_tells_nothing(self, tmp_path, context, no_gpu):
        wanted = recipe(tmp_path)
        made = plan_plan.make_plan(wanted)
        elsewhere = context.model_copy(update={"run_id": "run 2"})
        forecast_step.remember_throughput(wanted, inspected(), made, self.finetuned(), elsewhere)
        assert self.load(wanted, made, context).seconds is None


class TestTheMachine:
    def test_has_memory_and_a_name(self):
        assert hardware.found_memory("cpu") > 10**9
        assert "cores" in hardware.device_kind("cpu")

    def test_may_be_declared(self):
        assert hardware.found_memory("cuda", 24) == 24 * 10**9

    def test_is_asked_of_nvidia_smi_for_a_card(self, tmp_path, monkeypatch):
        asked = tmp_path / "nvidia-smi"
        asked.write_text('#!/bin/sh\ncase "$1" in *name*) echo "A Card";; *) echo 24564;; esac\n')
        asked.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        assert hardware.found_memory("cuda") == 24564 * 2**20
        assert hardware.device_kind("cuda") == "A Card"


class TestTheReport:
    load = Workload(tokens=1000, epochs=3, steps=12, device_kind="A Card")

    def test_says_what_it_takes_by_part(self):
        text = markdown.forecast_markdown(told(), self.load)
        assert "**26.00 GB** at the fullest moment, with 2,048 tokens at once" in text
        assert "| weights | 16.00 GB |" in text
        assert "1,000,000 weights are trained" in text
        assert (
            "1,000 tokens, 3 times, in 12 steps on A Card: how long that takes is not known" in text
        )

    def test_says_what_merging_takes_of_the_machine(self):
        text = markdown.forecast_markdown(told(shipping_host=27 * 10**9), self.load)
        assert "Merging the adapter afterwards takes 27.00 GB of the machine's own memory." in text

    def test_says_how_long_where_that_is_known(self):
        load = self.load.model_copy(update={"tokens_per_second": 10.0})
        assert "about 5.0 minutes, at the 10 tokens a second" in markdown.forecast_markdown(
            told(), load
        )

    def test_says_what_could_not_be_told(self):
        text = markdown.forecast_markdown(told(unknown="no such kernel"), self.load)
        assert "could not be told: no such kernel" in text and "weights" not in text
