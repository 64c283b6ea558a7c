"""The plan: what is settled before training, and what is refused while it costs nothing."""

import sys
from collections import namedtuple

import pytest

from tasks.contracts.artifacts import Artifact, Source, SourceFile
from tasks.contracts.errors import BadRecipe, StorageFailed
from tasks.contracts.recipe import Recipe
from tasks.contracts.results import Inspected, Loaded
from tasks.plan import plan as plan_plan
from tasks.plan import preflight

LINEAR = ("encoder.layer.0.attention.self.query", "encoder.layer.0.attention.self.value")


def recipe(tmp_path, **changes):
    data = {"name": "r", "data": {"uri": "d"}, "model": {"uri": "m"}, "store": str(tmp_path)}
    return Recipe.model_validate(data | changes)


def source(size=1000):
    file = SourceFile(path="model.safetensors", size=size, digest="d", location="/m")
    return Source(uri="m", pinned="m", digest="d", files=(file,))


def inspected(**changes):
    return Inspected(
        artifact=Artifact(kind="tokenizer", digest="d", files=1, bytes=1, uri=""),
        architecture="Bert",
        linear_modules=LINEAR,
        head_modules=("classifier",),
        pad_token="[PAD]",
        vocabulary=10,
        **{"max_length": 512, "parameters": 1} | changes,
    )


def loaded(test=200):
    return Loaded(
        artifact=Artifact(kind="dataset", digest="d", files=1, bytes=1, uri=""),
        labels=("a", "b"),
        rows={"train": 1000, "validation": 100, "test": test},
        test_digest="t",
        new_shards=0,
        shards=1,
    )


class TestPicks:
    @pytest.mark.parametrize(
        ("flags", "precision"), [({"avx512_bf16"}, "bf16"), ({"avx2"}, "fp32")]
    )
    def test_precision_follows_the_processor(self, tmp_path, monkeypatch, flags, precision):
        monkeypatch.setattr(plan_plan, "count_gpus", lambda: 0)
        monkeypatch.setattr(plan_plan, "processor_flags", lambda: flags)
        assert plan_plan.make_plan(recipe(tmp_path)).precision == precision

    def test_the_recipe_has_the_last_word(self, tmp_path, monkeypatch):
        monkeypatch.setattr(plan_plan, "processor_flags", lambda: {"avx512_bf16"})
        made = plan_plan.make_plan(recipe(tmp_path, training={"precision": "fp32"}))
        assert (made.precision, made.why["precision"]) == ("fp32", "the recipe says so")

    def test_a_gpu_gets_its_own_optimizer_and_attention(self, tmp_path, monkeypatch):
        monkeypatch.setattr(plan_plan, "count_gpus", lambda: 1)
        made = plan_plan.make_plan(recipe(tmp_path, training={"max_length": 64}))
        assert (made.device, made.precision) == ("cuda", "bf16")
        assert (made.optimizer, made.attention) == ("adamw_torch_fused", "sdpa")

    def test_why_is_not_part_of_a_key(self, tmp_path):
        made = plan_plan.make_plan(recipe(tmp_path))
        assert made.key_part() == made.model_copy(update={"why": {}}).key_part()

    def test_this_processor_tells_its_flags(self):
        assert plan_plan.processor_flags()


class TestKernels:
    """Liger's, which are looked for, but not imported."""

    @pytest.fixture
    def machine(self, monkeypatch):
        def have(gpus=1, liger=True):
            for module in (plan_plan, preflight):
                monkeypatch.setattr(module, "count_gpus", lambda: gpus)
            found = {"liger_kernel": object() if liger else None}
            monkeypatch.setattr(plan_plan.importlib.util, "find_spec", found.get)

        return have

    def plan_of(self, tmp_path, architecture="LlamaForCausalLM", **changes):
        wanted = recipe(tmp_path, **{"task": "completion", **changes})
        return plan_plan.make_plan(wanted, architecture=architecture)

    def test_are_picked_where_they_help(self, tmp_path, machine):
        machine()
        found = self.plan_of(tmp_path)
        assert found.kernels == "liger" and "one kernel each" in found.why["kernels"]

    @pytest.mark.parametrize(
        ("gpus", "liger", "changes", "why"),
        [
            (0, True, {}, "need a GPU"),
            (1, False, {}, "not installed"),
            (1, True, {"architecture": "GPT2LMHeadModel"}, "to suit GPT2LMHeadModel"),
            (1, True, {"task": "text-classification"}, "language models only"),
            (2, True, {"plan": {"sharding": "fsdp"}}, "shared out"),
        ],
    )
    def test_are_left_out_elsewhere_and_it_is_said_why(
        self, tmp_path, machine, gpus, liger, changes, why
    ):
        machine(gpus, liger)
        found = self.plan_of(tmp_path, **changes)
        assert found.kernels == "none" and why in found.why["kernels"]

    def test_are_as_the_recipe_says(self, tmp_path, machine):
        machine()
        found = self.plan_of(tmp_path, plan={"kernels": "none"})
        assert (found.kernels, found.why["kernels"]) == ("none", plan_plan.SAID)

    @pytest.mark.parametrize(
        ("gpus", "liger", "architecture", "fix"),
        [
            (1, False, "LlamaForCausalLM", "burnish[liger]', or set plan.kernels to none"),
            (0, True, "LlamaForCausalLM", "set plan.kernels to none or auto"),
            (1, True, "GPT2LMHeadModel", "set plan.kernels to none or auto"),
        ],
    )
    def test_that_cannot_be_are_refused_early(
        self, tmp_path, machine, gpus, liger, architecture, fix
    ):
        asked = recipe(tmp_path, task="completion", plan={"kernels": "liger"})
        found = inspected().model_copy(update={"architecture": architecture})
        machine(gpus, liger)
        with pytest.raises(BadRecipe) as error:
            preflight.refuse_early(asked, source(), loaded(), found)
        assert error.value.where == "plan.kernels" and fix in error.value.fix
        machine()
        known = found.model_copy(update={"architecture": "LlamaForCausalLM"})
        preflight._refuse_kernels(asked, known)

    def test_are_part_of_the_key(self, tmp_path, machine):
        machine()
        keys = [
            self.plan_of(tmp_path, plan={"kernels": each}).key_part() for each in ("none", "liger")
        ]
        assert keys[0] != keys[1]


class TestCompiling:
    MANY = plan_plan.COMPILE_TOKENS

    @pytest.fixture(autouse=True)
    def machine(self, tmp_path, monkeypatch):
        """One that has a GPU and all that compiling needs, whatever this one has."""
        monkeypatch.setattr(plan_plan, "count_gpus", lambda: 1)
        (tmp_path / "include").mkdir()
        (tmp_path / "include" / "Python.h").touch()
        monkeypatch.setattr(plan_plan.sysconfig, "get_path", lambda _: str(tmp_path / "include"))
        monkeypatch.setenv("CXX", sys.executable)

    def plan_of(self, tmp_path, tokens=MANY, **changes):
        asked = recipe(tmp_path, task="completion", training={"epochs": 1}, plan=changes)
        return plan_plan.make_plan(asked, tokens=tokens)

    def test_is_picked_where_it_pays(self, tmp_path):
        assert self.plan_of(tmp_path).compile
        assert not self.plan_of(tmp_path, self.MANY - 1).compile

    def test_is_never_picked_on_a_processor_but_may_be_asked_for(self, tmp_path, monkeypatch):
        monkeypatch.setattr(plan_plan, "count_gpus", lambda: 0)
        found = self.plan_of(tmp_path, 1000 * self.MANY)
        assert not found.compile and "no faster on the CPU" in found.why["compile"]
        assert self.plan_of(tmp_path, 1, compile="on").compile

    def test_is_left_out_without_a_compiler(self, tmp_path, monkeypatch):
        monkeypatch.setenv("CXX", "g++-of-nowhere")
        found = self.plan_of(tmp_path)
        assert not found.compile and "g++-of-nowhere was not found" in found.why["compile"]

    def test_without_a_compiler_is_refused_early(self, tmp_path, monkeypatch):
        asked = recipe(tmp_path, task="completion", plan={"compile": "on"})
        preflight.refuse_early(asked, source(), loaded(), inspected())
        monkeypatch.setenv("CXX", "g++-of-nowhere")
        with pytest.raises(BadRecipe, match="g\\+\\+-of-nowhere") as error:
            preflight.refuse_early(asked, source(), loaded(), inspected())
        assert error.value.where == "plan.compile" and "install g++" in error.value.fix

    def test_without_pythons_headers_is_left_out(self, tmp_path, monkeypatch):
        monkeypatch.setattr(plan_plan.sysconfig, "get_path", lambda _: str(tmp_path))
        assert "Python.h" in self.plan_of(tmp_path).why["compile"]


class TestRefusals:
    def test_targets_that_match_nothing_name_those_that_would(self, tmp_path):
        asked = recipe(tmp_path, lora={"target_modules": ["quary"]})
        with pytest.raises(BadRecipe, match=r"did you mean 'query'\?.*some of: query, value"):
            preflight.refuse_early(asked, source(), loaded(), inspected())

    @pytest.mark.parametrize("target", ["query", "self.query", "all-linear", LINEAR[0]])
    def test_targets_may_be_said_by_any_end_of_their_name(self, tmp_path, target):
        asked = recipe(tmp_path, lora={"target_modules": [target]})
        preflight.refuse_early(asked, source(), loaded(), inspected())

    def test_a_length_beyond_the_models(self, tmp_path):
        asked = recipe(tmp_path, training={"max_length": 513})
        with pytest.raises(BadRecipe, match=r"found 513 tokens; expected at most 512"):
            preflight.refuse_early(asked, source(), loaded(), inspected())

    @pytest.mark.parametrize(
        "other",
        [
            {"task": "text-classification", "quantization": "none"},
            {"quantization": "nf4"},
            {"lora": {"dora": True}},
            {"lora": {"modules_to_save": ["lm_head"]}},
        ],
    )
    def test_sharing_out_a_model_that_cannot_be(self, tmp_path, other):
        asked = {"task": "completion", "quantization": "none", "plan": {"sharding": "fsdp"}}
        with pytest.raises(BadRecipe, match=r"plan\.sharding: found fsdp with"):
            preflight.refuse_early(
                recipe(tmp_path, **asked | other), source(), loaded(), inspected()
            )
        preflight._refuse_sharing(recipe(tmp_path, **asked))

    def test_any_length_where_the_model_sets_none(self, tmp_path):
        asked = recipe(tmp_path, training={"max_length": 100_000})
        preflight.refuse_early(asked, source(), loaded(), inspected(max_length=None))

    def test_a_test_set_that_the_gate_would_reject_anyway(self, tmp_path):
        with pytest.raises(BadRecipe, match="found 89 test examples among 1,189"):
            preflight.refuse_early(recipe(tmp_path), source(), loaded(test=89), inspected())

    def test_a_disk_that_is_too_full(self, tmp_path, monkeypatch):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(
            plan_plan.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 3 * 10**6)
        )
        with pytest.raises(StorageFailed, match=r"no disk space: 3 MB free; expected about 4 MB"):
            preflight.refuse_early(recipe(tmp_path), source(10**6), loaded(), inspected())

    @pytest.mark.parametrize(
        ("kind", "size", "need"), [("f32", 400, 1208), ("bf16", 200, 608), ("q8_0", 106, 327)]
    )
    def test_a_disk_that_is_too_full_for_the_gguf_file(
        self, tmp_path, monkeypatch, kind, size, need
    ):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(
            plan_plan.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 9 * 10**6)
        )
        monkeypatch.setattr(preflight, "_refuse_gguf", lambda *_: None)
        task = {"task": "completion", "evaluation": {"slices": ["length"]}}
        asked = recipe(tmp_path, model={"uri": "m", "gguf": kind}, **task)
        expected = f"about {need} MB, 4 times the base model and 3 times the GGUF file of {size} MB"
        big = inspected(parameters=10**8)
        with pytest.raises(StorageFailed, match=expected):
            preflight.refuse_early(asked, source(2 * 10**6), loaded(), big)
        # Without it there is room.
        preflight.refuse_early(recipe(tmp_path, **task), source(2 * 10**6), loaded(), big)

    @pytest.mark.parametrize(("path", "fails"), [("m.gguf", True), ("model.safetensors", False)])
    def test_an_adapter_of_a_gguf_file(self, tmp_path, path, fails):
        asked = recipe(tmp_path, model={"uri": "m", "ship": "adapter"})
        base = source().model_copy(
            update={"files": (SourceFile(path=path, size=1, digest="d", location="/m"),)}
        )
        if fails:
            with pytest.raises(BadRecipe, match=r"model\.ship: found adapter.*GGUF") as caught:
                preflight.refuse_adapter(asked, base)
            assert "model.ship to merged" in caught.value.fix
        else:
            preflight.refuse_adapter(asked, base)
        preflight.refuse_adapter(recipe(tmp_path), base)
