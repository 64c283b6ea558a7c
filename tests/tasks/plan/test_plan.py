"""The plan: what is picked where the recipe leaves it open, and why."""

import importlib.util
import sys
import sysconfig

import pytest

from tasks.plan import plan as plan_module
from tasks.plan.plan import COMPILE_TOKENS, FROM_RECIPE, make_plan, processor_flags
from tests.tasks.plan.conftest import forecast_of, plan_inputs


class TestPicks:
    @pytest.mark.parametrize(
        ("flags", "precision"), [({"avx512_bf16"}, "bf16"), ({"avx2"}, "fp32")]
    )
    def test_precision_follows_the_processor(self, no_gpu, monkeypatch, flags, precision):
        monkeypatch.setattr(plan_module, "processor_flags", lambda: flags)
        assert make_plan(plan_inputs()).precision == precision

    def test_the_recipe_overrides_them(self, monkeypatch):
        monkeypatch.setattr(plan_module, "processor_flags", lambda: {"avx512_bf16"})
        plan = make_plan(plan_inputs(training={"precision": "fp32"}))
        assert (plan.precision, plan.why["precision"]) == ("fp32", FROM_RECIPE)

    def test_a_gpu_gets_its_own_optimizer_and_attention(self, monkeypatch):
        monkeypatch.setattr(plan_module, "count_gpus", lambda: 1)
        plan = make_plan(plan_inputs(training={"max_length": 64}))
        assert (plan.device, plan.precision) == ("cuda", "bf16")
        assert (plan.optimizer, plan.attention) == ("adamw_torch_fused", "sdpa")

    def test_reasons_are_not_part_of_a_key(self):
        plan = make_plan(plan_inputs())
        assert plan.key_part() == plan.model_copy(update={"why": {}}).key_part()

    def test_processor_flags_are_found_on_this_machine(self):
        assert processor_flags()


class TestCheckpointing:
    def test_is_on_if_the_forecast_needs_it(self, no_gpu):
        forecast = forecast_of(checkpointing=True, fits=True)
        plan = make_plan(plan_inputs(task="instruction", forecast=forecast))
        assert plan.checkpointing and "longest example" in plan.why["checkpointing"]

    def test_is_as_the_recipe_says(self, no_gpu):
        forecast = forecast_of(checkpointing=True)
        plan = make_plan(
            plan_inputs(task="instruction", settings={"checkpointing": "off"}, forecast=forecast)
        )
        assert not plan.checkpointing and plan.why["checkpointing"] == FROM_RECIPE


class TestLigerKernels:
    """Liger's package is searched for, but not imported."""

    @pytest.fixture
    def machine(self, monkeypatch):
        def have(gpus=1, liger=True):
            monkeypatch.setattr(plan_module, "count_gpus", lambda: gpus)
            found = {"liger_kernel": object() if liger else None}
            monkeypatch.setattr(importlib.util, "find_spec", found.get)

        return have

    def plan_of(self, architecture="LlamaForCausalLM", **changes):
        wanted = {"task": "completion", "architecture": architecture, **changes}
        return make_plan(plan_inputs(**wanted))

    def test_are_picked_if_they_can_be_used(self, machine):
        machine()
        plan = self.plan_of()
        assert plan.kernels == "liger" and "one kernel each" in plan.why["kernels"]

    @pytest.mark.parametrize(
        ("gpus", "liger", "changes", "why"),
        [
            (0, True, {}, "need a GPU"),
            (1, False, {}, "not installed"),
            (1, True, {"architecture": "GPT2LMHeadModel"}, "do not support GPT2LMHeadModel"),
            (1, True, {"task": "text-classification"}, "language models only"),
            (2, True, {"settings": {"sharding": "fsdp"}}, "sharded model"),
        ],
    )
    def test_are_left_out_otherwise_with_a_reason(self, machine, gpus, liger, changes, why):
        machine(gpus, liger)
        plan = self.plan_of(**changes)
        assert plan.kernels == "none" and why in plan.why["kernels"]

    def test_are_as_the_recipe_says(self, machine):
        machine()
        plan = self.plan_of(settings={"kernels": "none"})
        assert (plan.kernels, plan.why["kernels"]) == ("none", FROM_RECIPE)

    def test_are_part_of_the_key(self, machine):
        machine()
        keys = [self.plan_of(settings={"kernels": each}).key_part() for each in ("none", "liger")]
        assert keys[0] != keys[1]


class TestCompiling:
    @pytest.fixture(autouse=True)
    def machine(self, tmp_path, monkeypatch):
        """A machine with a GPU and everything that compiling needs."""
        monkeypatch.setattr(plan_module, "count_gpus", lambda: 1)
        (tmp_path / "include").mkdir()
        (tmp_path / "include" / "Python.h").touch()
        monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path / "include"))
        monkeypatch.setenv("CXX", sys.executable)

    def plan_of(self, tokens=COMPILE_TOKENS, **settings):
        return make_plan(
            plan_inputs(task="completion", training={"epochs": 1}, settings=settings, tokens=tokens)
        )

    def test_is_picked_for_long_trainings(self):
        assert self.plan_of().compile
        assert not self.plan_of(COMPILE_TOKENS - 1).compile

    def test_is_never_picked_on_a_cpu_but_can_be_set(self, monkeypatch):
        monkeypatch.setattr(plan_module, "count_gpus", lambda: 0)
        plan = self.plan_of(1000 * COMPILE_TOKENS)
        assert not plan.compile and "no faster on the CPU" in plan.why["compile"]
        assert self.plan_of(1, compile="on").compile

    def test_is_left_out_without_a_compiler(self, monkeypatch):
        monkeypatch.setenv("CXX", "g++-of-nowhere")
        plan = self.plan_of()
        assert not plan.compile and "g++-of-nowhere was not found" in plan.why["compile"]

    def test_is_left_out_without_the_headers_of_python(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
        assert "Python.h" in self.plan_of().why["compile"]
