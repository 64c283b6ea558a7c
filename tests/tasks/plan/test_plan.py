"""The plan: what is picked where the recipe leaves it open, and why."""

import pytest

from tasks.plan.plan import COMPILE_TOKENS, FROM_RECIPE, make_plan
from tests.tasks.plan.conftest import LIGER, forecast_of, gpu_machine, machine, plan_inputs


class TestPicks:
    @pytest.mark.parametrize(("bf16", "precision"), [(True, "bf16"), (False, "fp32")])
    def test_precision_follows_the_processor(self, bf16, precision):
        assert make_plan(plan_inputs(machine=machine(bf16=bf16))).precision == precision

    def test_the_recipe_overrides_them(self):
        plan = make_plan(plan_inputs(training={"precision": "fp32"}))
        assert (plan.precision, plan.why["precision"]) == ("fp32", FROM_RECIPE)

    def test_a_gpu_gets_its_own_optimizer_and_attention(self):
        plan = make_plan(plan_inputs(machine=gpu_machine(), training={"max_length": 64}))
        assert (plan.device, plan.precision) == ("cuda", "bf16")
        assert (plan.optimizer, plan.attention) == ("adamw_torch_fused", "sdpa")

    def test_one_process_trains_on_each_gpu(self):
        assert make_plan(plan_inputs(machine=gpu_machine(gpus=4))).world_size == 4

    def test_reasons_are_not_part_of_a_key(self):
        plan = make_plan(plan_inputs())
        assert plan.key_part() == plan.model_copy(update={"why": {}}).key_part()


class TestCheckpointing:
    def test_is_on_if_the_forecast_needs_it(self):
        forecast = forecast_of(checkpointing=True, fits=True)
        plan = make_plan(plan_inputs(task="instruction", forecast=forecast))
        assert plan.checkpointing and "longest example" in plan.why["checkpointing"]

    def test_is_as_the_recipe_says(self):
        forecast = forecast_of(checkpointing=True)
        plan = make_plan(
            plan_inputs(task="instruction", settings={"checkpointing": "off"}, forecast=forecast)
        )
        assert not plan.checkpointing and plan.why["checkpointing"] == FROM_RECIPE


class TestLigerKernels:
    def plan_of(self, architecture="LlamaForCausalLM", **changes):
        wanted = {"machine": gpu_machine(), "task": "completion", "architecture": architecture}
        return make_plan(plan_inputs(**wanted | changes))

    def test_are_picked_if_they_can_be_used(self):
        plan = self.plan_of()
        assert plan.kernels == "liger" and "one kernel each" in plan.why["kernels"]

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"machine": machine()}, "need a GPU"),
            ({"machine": gpu_machine(libraries={})}, "not installed"),
            ({"machine": gpu_machine(libraries={"liger-kernel": "absent"})}, "not installed"),
            ({"architecture": "GPT2LMHeadModel"}, "do not support GPT2LMHeadModel"),
            ({"task": "text-classification"}, "language models only"),
            ({"machine": gpu_machine(gpus=2), "settings": {"sharding": "fsdp"}}, "sharded model"),
        ],
    )
    def test_are_left_out_otherwise_with_a_reason(self, changes, why):
        plan = self.plan_of(**changes)
        assert plan.kernels == "none" and why in plan.why["kernels"]

    def test_are_as_the_recipe_says(self):
        plan = self.plan_of(settings={"kernels": "none"})
        assert (plan.kernels, plan.why["kernels"]) == ("none", FROM_RECIPE)

    def test_are_part_of_the_key(self):
        keys = [self.plan_of(settings={"kernels": each}).key_part() for each in ("none", "liger")]
        assert keys[0] != keys[1]


class TestCompiling:
    def plan_of(self, tokens=COMPILE_TOKENS, on=None, **settings):
        on = on or gpu_machine(libraries=LIGER)
        training = {"epochs": 1}
        return make_plan(
            plan_inputs(
                machine=on, task="completion", training=training, settings=settings, tokens=tokens
            )
        )

    def test_is_picked_for_long_trainings(self):
        assert self.plan_of().compile
        assert not self.plan_of(COMPILE_TOKENS - 1).compile

    def test_is_never_picked_on_a_cpu_but_can_be_set(self):
        plan = self.plan_of(1000 * COMPILE_TOKENS, on=machine())
        assert not plan.compile and "no faster on the CPU" in plan.why["compile"]
        assert self.plan_of(1, compile="on").compile

    def test_is_left_out_where_something_is_missing(self):
        plan = self.plan_of(on=gpu_machine(lacks_to_compile="the compiler g++"))
        assert not plan.compile and "the compiler g++ was not found" in plan.why["compile"]
