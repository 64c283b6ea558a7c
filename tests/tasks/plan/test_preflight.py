"""Preflight: what is refused before training, and how the refusal says what would help."""

from __future__ import annotations

import shutil
from collections import namedtuple
from typing import Any

import pytest

from tasks.contracts.errors import BadRecipe, StorageFailed
from tasks.contracts.forecast import Remedy
from tasks.plan.preflight import (
    refuse_adapter,
    refuse_early,
    refuse_memory,
    refuse_small_labels,
    refuse_small_test,
)
from tests.tasks.plan.conftest import (
    CONVERTER,
    LINEAR,
    forecast_of,
    gpu_machine,
    inspected,
    loaded,
    machine,
    preflight_inputs,
    source,
)
from tests.tasks.samples import run_context


@pytest.fixture
def refuse(tmp_path):
    """Runs the checks on a classifier that passes them all, with changes."""

    def check(**changes: Any) -> None:
        refuse_early(preflight_inputs(**changes), run_context(tmp_path))

    return check


class TestTheRecipeAndTheModel:
    def test_targets_that_match_no_module_are_refused_with_the_nearest(self, refuse):
        with pytest.raises(BadRecipe, match=r"did you mean 'query'\?.*some of: query, value"):
            refuse(lora={"target_modules": ["quary"]})

    @pytest.mark.parametrize("target", ["query", "self.query", "all-linear", LINEAR[0]])
    def test_targets_may_be_any_last_parts_of_a_module_name(self, refuse, target):
        refuse(lora={"target_modules": [target]})

    def test_a_length_above_the_models_is_refused(self, refuse):
        with pytest.raises(BadRecipe, match=r"found 513 tokens; expected at most 512"):
            refuse(max_length=513)

    def test_any_length_passes_if_the_model_has_no_limit(self, refuse):
        refuse(max_length=100_000, inspected=inspected(max_length=None))

    @pytest.mark.parametrize(
        "other",
        [
            {"task": "text-classification"},
            {"quantization": "nf4"},
            {"lora": {"dora": True}},
            {"lora": {"modules_to_save": ["lm_head"]}},
        ],
    )
    def test_sharding_is_refused_for_what_cannot_be_sharded(self, refuse, other):
        wanted = {"task": "completion", "settings": {"sharding": "fsdp"}}
        with pytest.raises(BadRecipe, match=r"plan\.sharding: found fsdp with"):
            refuse(**wanted | other)
        refuse(**wanted)

    def test_a_test_set_that_the_gate_would_reject_is_refused(self):
        with pytest.raises(BadRecipe, match="found 89 test examples among 1,189"):
            refuse_small_test(loaded(test=89), 90)
        refuse_small_test(loaded(test=89), 89)

    def test_a_label_that_is_too_rare_to_average_over_is_refused(self):
        labels = {"a": {"train": 900, "test": 100}, "b": {"train": 90, "test": 29}}
        with pytest.raises(BadRecipe, match="29 test examples of the label 'b'") as caught:
            refuse_small_labels(labels, "f1")
        assert "set gate.metric to accuracy" in caught.value.fix
        refuse_small_labels(labels, "accuracy")
        refuse_small_labels({"a": {"test": 30}}, "f1")

    def test_an_adapter_of_a_gguf_file_is_refused(self):
        with pytest.raises(BadRecipe, match=r"model\.ship: found adapter.*GGUF") as caught:
            refuse_adapter("adapter", source(path="m.gguf"))
        assert "model.ship to merged" in caught.value.fix
        refuse_adapter("adapter", source())
        refuse_adapter("merged", source(path="m.gguf"))

    def test_an_adapter_of_a_base_in_a_folder_of_a_repository_is_refused(self):
        inside = source().model_copy(update={"uri": "hf://owner/name@main/v2"})
        with pytest.raises(BadRecipe, match=r"'v2' of the repository owner/name"):
            refuse_adapter("adapter", inside)
        refuse_adapter("merged", inside)
        refuse_adapter("adapter", source().model_copy(update={"uri": "hf://owner/name@main"}))


class TestTheMachine:
    @pytest.mark.parametrize(
        ("on", "architecture", "fix"),
        [
            (
                gpu_machine(libraries={}),
                "LlamaForCausalLM",
                "burnish[liger]', or set plan.kernels to none",
            ),
            (machine(), "LlamaForCausalLM", "set plan.kernels to none or auto"),
            (gpu_machine(), "GPT2LMHeadModel", "set plan.kernels to none or auto"),
        ],
    )
    def test_kernels_that_cannot_be_used_are_refused(self, refuse, on, architecture, fix):
        wanted = {"task": "completion", "settings": {"kernels": "liger"}}
        with pytest.raises(BadRecipe) as error:
            refuse(**wanted, machine=on, inspected=inspected(architecture=architecture))
        assert error.value.where == "plan.kernels" and fix in error.value.fix
        llama = inspected(architecture="LlamaForCausalLM")
        refuse(**wanted, machine=gpu_machine(), inspected=llama)

    def test_compiling_without_a_compiler_is_refused(self, refuse):
        wanted = {"task": "completion", "settings": {"compile": "on"}}
        refuse(**wanted)
        with pytest.raises(BadRecipe, match="the compiler g\\+\\+ was not found") as error:
            refuse(**wanted, machine=machine(lacks_to_compile="the compiler g++"))
        assert error.value.where == "plan.compile" and "install g++" in error.value.fix

    def test_more_processes_than_gpus_are_refused(self, refuse):
        with pytest.raises(BadRecipe, match="found 2, where a process may use 1 GPUs"):
            refuse(machine=gpu_machine(), settings={"processes": 2})
        refuse(machine=gpu_machine(gpus=2), settings={"processes": 2})
        refuse(settings={"processes": 2})


class TestTheDisk:
    @pytest.fixture
    def free(self, monkeypatch):
        """Sets how many bytes are free."""
        usage = namedtuple("usage", "total used free")

        def have(size):
            monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, size))

        return have

    def test_that_is_too_full_is_refused(self, refuse, free):
        free(3 * 10**6)
        with pytest.raises(StorageFailed, match=r"no disk space: 3 MB free; expected about 4 MB"):
            refuse(base=source(10**6))

    @pytest.mark.parametrize(
        ("kind", "size", "need"), [("f32", 400, 1208), ("bf16", 200, 608), ("q8_0", 106, 327)]
    )
    def test_that_is_too_full_for_the_gguf_file_is_refused(self, refuse, free, kind, size, need):
        free(9 * 10**6)
        expected = f"about {need} MB, 4 times the base model and 3 times the GGUF file of {size} MB"
        wanted = {
            "task": "completion",
            "base": source(2 * 10**6),
            "inspected": inspected(parameters=10**8),
        }
        with pytest.raises(StorageFailed, match=expected):
            refuse(**wanted, gguf=kind)
        refuse(**wanted)


# Changes that ask for the GGUF file of a language model.
GGUF: dict[str, Any] = {
    "gguf": "f16",
    "task": "instruction",
    "inspected": inspected(architecture="LlamaForCausalLM"),
}


class TestGguf:
    def test_a_model_that_the_converter_knows_passes(self, refuse):
        refuse(**GGUF)

    def test_without_a_converter_the_field_and_the_command_are_named(self, refuse):
        with pytest.raises(BadRecipe, match=r"model\.gguf: found f16.*pip install --no-deps"):
            refuse(**GGUF, machine=machine(converter=None))

    def test_a_converter_without_a_module_that_it_imports_is_refused(self, refuse):
        incomplete = CONVERTER.model_copy(update={"complete": False})
        with pytest.raises(BadRecipe, match="without the module sentencepiece"):
            refuse(**GGUF, machine=machine(converter=incomplete))

    def test_an_architecture_that_the_converter_does_not_know_is_refused(self, refuse):
        with pytest.raises(BadRecipe, match="SomeForCausalLM, which the converter"):
            refuse(**GGUF | {"inspected": inspected(architecture="SomeForCausalLM")})

    def test_a_classifier_is_refused(self, refuse):
        with pytest.raises(BadRecipe, match="for a classifier"):
            refuse(**GGUF | {"task": "text-classification"})

    def test_no_converter_is_needed_without_a_gguf_file(self, refuse):
        refuse(**GGUF | {"gguf": "none"}, machine=machine(converter=None))


class TestMemory:
    def test_a_refusal_says_what_would_help_and_by_how_much(self):
        remedies = (
            Remedy(change="quantization: nf4", peak=11_200_000_000, fits=True),
            Remedy(change="lora.dropout: 0", peak=25 * 10**9, fits=False),
        )
        with pytest.raises(BadRecipe) as error:
            refuse_memory(forecast_of(remedies=remedies))
        assert error.value.where == "training.max_length"
        assert "26.0 GB" in error.value.found and "weights 16.0 GB" in error.value.found
        assert "22.0 GB" in error.value.expected
        assert error.value.fix == (
            "quantization: nf4 would bring it to 11.2 GB; lora.dropout: 0 only to 25.0 GB"
        )

    def test_a_refusal_names_a_large_enough_card_if_nothing_helps(self):
        with pytest.raises(BadRecipe) as error:
            refuse_memory(forecast_of())
        # 26 GB and the driver's 0.6, with a reserve of a twentieth.
        assert error.value.fix == "use a card of 28.0 GB, or a smaller base model"

    def test_a_refusal_names_the_declared_memory(self):
        with pytest.raises(BadRecipe) as error:
            refuse_memory(forecast_of(), memory_declared=True)
        assert error.value.where == "plan.device_memory_gb"

    def test_merging_on_a_card_that_is_too_small_is_refused(self):
        small = forecast_of(parts={"weights": 10**9}, merge_memory=30 * 10**9)
        with pytest.raises(BadRecipe) as error:
            refuse_memory(small)
        assert error.value.where == "model.ship"
        assert "30.0 GB of the card's memory" in error.value.found
        assert error.value.fix == "set model.ship to adapter, or use a card of 32.2 GB"
        # An adapter cannot ship for a GGUF base.
        with pytest.raises(BadRecipe) as error:
            refuse_memory(small, gguf_base=True)
        assert error.value.fix == "use a card of 32.2 GB"

    @pytest.mark.parametrize("memory", [24 * 10**9, 0])
    def test_merging_on_a_machine_that_is_too_small_is_refused(self, memory):
        small = forecast_of(
            parts={"weights": 10**9},
            memory=memory,
            merge_host_memory=30 * 10**9,
            host_memory=32 * 10**9,
            host_reserve=4 * 10**9,
        )
        with pytest.raises(BadRecipe) as error:
            refuse_memory(small)
        assert error.value.where == "model.ship"
        assert "30.0 GB of the machine's memory" in error.value.found
        assert error.value.expected == (
            "at most 28.0 GB (32.0 GB of the machine, less a reserve of 4.0 GB)"
        )
        assert error.value.fix == "set model.ship to adapter, or use a machine of 34.4 GB"

    @pytest.mark.parametrize("changes", [{"fits": True}, {"unknown": "why"}, {"memory": 0}])
    def test_nothing_is_refused_on_a_guess(self, changes):
        refuse_memory(forecast_of(**changes))
