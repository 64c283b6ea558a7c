"""What the recipe leaves open, settled and shown before anything is keyed; and what must be
refused before a GPU is asked for."""

from __future__ import annotations

import difflib
import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

from tasks.contracts.artifact import Inspected, Loaded, Plan, Source
from tasks.contracts.forecast import Forecast
from tasks.contracts.recipe import Recipe
from tasks.converter import VARIABLE, find_converter, how_to_install, knows, lacks_module
from tasks.errors import BadRecipe, StorageFailed
from tasks.memory import count_gpus, memory_for
from tasks.objects import FolderObjects
from tasks.store import open_store
from tasks.unpack import is_gguf

BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
# On a CPU, plain attention was measured a fifth faster than the fused one at 128 tokens.
SHORT_TOKENS = 128
# On a GPU, where it was not measured yet: only a long job gains enough to bother.
COMPILE_TOKENS = 2_000_000
# Dense models whose layers Liger's kernels (0.8.5) replace, each tried against transformers' own in
# Triton's interpreter: losses within 5e-7, gradients within 6e-7.
LIGER_KNOWS = (
    "GraniteForCausalLM",
    "LlamaForCausalLM",
    "MinistralForCausalLM",
    "MistralForCausalLM",
    "Olmo2ForCausalLM",
    "Olmo3ForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
)
SAID = "the recipe says so"
# Checkpoints of adapter and optimizer, the merged model in fp32, and its published copy.
DISK_COPIES = 4
# In the store, staged to be published, and at a folder that is a target.
GGUF_COPIES = 3
# A weight of q8_0: blocks of 32 of 8 bits share a scale of 16 bits
# (https://github.com/ggml-org/llama.cpp, ggml/src/ggml-common.h).
GGUF_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 34 / 32}


def make_plan(
    recipe: Recipe, tokens: int = 0, told: Forecast | None = None, architecture: str = ""
) -> Plan:
    """Settle how it is trained on the machine that trains: what `recipe.plan` says, and for the
    rest what suits the device and the task.

    Args:
        recipe: What is to be trained.
        tokens: Real tokens of one epoch, where they are known.
        told: What training will take, where that is known: it was told of the plan without it.
        architecture: The base model's class in transformers, where it is known.
    """
    gpus = count_gpus()
    device = "cuda" if gpus else "cpu"
    language = recipe.task != "text-classification"
    picks: dict[str, tuple[Any, str]] = {
        "device": (device, f"{gpus} found" if gpus else "no GPU was found"),
        "precision": _precision(recipe, device),
        "packing": _packing(recipe, language),
    }
    picks["attention"] = _attention(recipe, device, packed=picks["packing"][0])
    picks["optimizer"] = _optimizer(recipe, device, language)
    picks["checkpointing"] = _checkpointing(recipe, told)
    picks["compile"] = _compile(recipe, device, language, tokens)
    picks["kernels"] = _kernels(recipe, device, architecture)
    picks["world_size"] = _processes(recipe, gpus)
    fields = {name: value for name, (value, _) in picks.items()}
    sharding = "fsdp" if recipe.plan.sharding == "fsdp" else "ddp"
    return Plan(**fields, sharding=sharding, why={name: why for name, (_, why) in picks.items()})


def _precision(recipe: Recipe, device: str) -> tuple[str, str]:
    if recipe.training.precision != "auto":
        return recipe.training.precision, SAID
    fast = device == "cuda" or bool(BF16_FLAGS & processor_flags())
    owner = "GPU" if device == "cuda" else "processor"
    return "bf16" if fast else "fp32", f"the {owner} {'has' if fast else 'lacks'} bf16"


def _packing(recipe: Recipe, language: bool) -> tuple[bool, str]:
    if not language:
        return False, "a classifier reads each text by itself"
    return _switch(recipe.plan.packing, True, "padding would be computed for nothing")


def _attention(recipe: Recipe, device: str, packed: bool) -> tuple[str, str]:
    if recipe.plan.attention != "auto":
        return recipe.plan.attention, SAID
    if packed:
        return "segments", "packed examples must not see each other"
    short = recipe.training.max_length <= SHORT_TOKENS
    picked = "eager" if device == "cpu" and short else "sdpa"
    return picked, f"texts of {'few' if short else 'many'} tokens on the {device}"


def _optimizer(recipe: Recipe, device: str, language: bool) -> tuple[str, str]:
    if recipe.plan.optimizer != "auto":
        return recipe.plan.optimizer, SAID
    if device == "cpu":
        return "adamw_torch", "the plain one, on the cpu"
    if language and recipe.quantization == "nf4":
        return "paged_adamw_8bit", "with QLoRA memory is short: its state can move to the host"
    return "adamw_torch_fused", "one kernel for all parameters"


def _checkpointing(recipe: Recipe, told: Forecast | None) -> tuple[bool, str]:
    if told is None or told.unknown:
        return _switch(recipe.plan.checkpointing, False, "memory is not told to be short")
    short = "without it, the longest example would not fit into memory"
    why = short if told.checkpointing else "memory is not short"
    return _switch(recipe.plan.checkpointing, told.checkpointing, why)


def _compile(recipe: Recipe, device: str, language: bool, tokens: int) -> tuple[bool, str]:
    total = tokens * recipe.training.epochs
    if not language:
        return _switch(recipe.plan.compile, False, "short texts train faster than they compile")
    if device == "cpu":
        # Measured on two cores, SmolLM2's shape in bf16: 0.98 times as fast a token.
        return _switch(recipe.plan.compile, False, "compiled, a model trains no faster on the cpu")
    if lacking := _lacks_to_compile():
        return _switch(recipe.plan.compile, False, f"{lacking} was not found")
    pays = total >= COMPILE_TOKENS
    why = f"{total:,} tokens are {'enough' if pays else 'too few'} to pay for compiling"
    return _switch(recipe.plan.compile, pays, why)


def _lacks_to_compile() -> str:
    """What torch.compile needs on this machine and does not find; empty where it has all."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"the compiler {compiler}"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's header Python.h"
    return ""


def _kernels(recipe: Recipe, device: str, architecture: str) -> tuple[str, str]:
    if recipe.plan.kernels != "auto":
        return recipe.plan.kernels, SAID
    lacking = _why_not_liger(recipe.task, device, architecture)
    if recipe.plan.sharding == "fsdp":
        lacking = lacking or "Liger's were not tried on a model that is shared out"
    if lacking:
        return "none", lacking
    return "liger", "norm, rotary embedding and gated MLP are one kernel each, and keep less"


def _why_not_liger(task: str, device: str, architecture: str) -> str:
    """Why Liger's kernels cannot be used; empty where they can."""
    if task == "text-classification":
        return "Liger's are used for language models only"
    if device == "cpu":
        return "Liger's need a GPU"
    if importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    if architecture not in LIGER_KNOWS:
        return f"Liger's are not known to suit {architecture or 'the model'}"
    return ""


def _processes(recipe: Recipe, gpus: int) -> tuple[int, str]:
    if recipe.plan.processes:
        return recipe.plan.processes, SAID
    return max(1, gpus), "one for each GPU" if gpus else "the cores share one process"


def _switch(said: str, picked: bool, why: str) -> tuple[bool, str]:
    return (picked, why) if said == "auto" else (said == "on", SAID)


def processor_flags() -> set[str]:
    """The processor's feature flags, where Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), ":")
    return set(flags.split(":", 1)[1].split())


def refuse_early(recipe: Recipe, model: Source, loaded: Loaded, inspected: Inspected) -> None:
    """Refuse what would fail later, while it costs nothing.

    Raises:
        BadRecipe: Kernels are asked for that cannot be used, or compiling without a compiler, LoRA
            targets match nothing, the length exceeds the model's, the test set is smaller than the
            gate asks for, or a GGUF file is asked for and cannot be made.
        StorageFailed: The store's disk is too full for what training will write.
    """
    _refuse_sharing(recipe)
    _refuse_kernels(recipe, inspected)
    _refuse_compiling(recipe)
    _refuse_small_test(recipe, loaded)
    _refuse_targets(recipe, inspected)
    _refuse_length(recipe, inspected)
    _refuse_gguf(recipe, inspected)
    _refuse_disk(recipe, model, inspected)


def refuse_adapter(recipe: Recipe, model: Source) -> None:
    """Refuse an adapter that nobody could load: it names its base, and peft loads no GGUF file.

    Args:
        recipe: What is to ship.
        model: The base model, as it was resolved.

    Raises:
        BadRecipe: The adapter shall ship, of a base that is a GGUF file.
    """
    if recipe.model.ship == "adapter" and is_gguf(model):
        raise BadRecipe(
            "model.ship",
            f"adapter, of a base that is a GGUF file ({recipe.model.uri})",
            "a base that an adapter can be loaded on: a model in safetensors",
            "set model.ship to merged, or model.uri to the original model in safetensors",
        )


def refuse_memory(recipe: Recipe, told: Forecast, *, gguf_base: bool = False) -> None:
    """Refuse what will not fit into memory, and say what would.

    Args:
        recipe: What is to be trained.
        told: What it will take.
        gguf_base: Whether the base is a GGUF file, of which only a merged model can ship.

    Raises:
        BadRecipe: Training, or merging the adapter, needs more than there is.
    """
    if told.fits or told.unknown:
        return
    if told.memory and told.peak > told.memory - told.reserve:
        raise _too_large_to_train(recipe, told)
    merging = (
        ("card", told.shipping, told.memory, told.reserve),
        ("machine", told.shipping_host, told.host_memory, told.host_reserve),
    )
    for what, need, memory, reserve in merging:
        if memory and need > memory - reserve:
            raise _too_large_to_merge(what, need, memory, reserve, gguf_base)


def _too_large_to_train(recipe: Recipe, told: Forecast) -> BadRecipe:
    parts = sorted(told.parts.items(), key=lambda part: -part[1])[:3]
    return BadRecipe(
        "plan.device_memory_gb" if recipe.plan.device_memory_gb else "training.max_length",
        f"{_gb(told.peak)} to train with {told.micro_batch_tokens:,} tokens at once ("
        + ", ".join(f"{name} {_gb(size)}" for name, size in parts)
        + ")",
        _at_most("card" if told.device == "cuda" else "machine", told.memory, told.reserve),
        _memory_advice(told),
    )


def _too_large_to_merge(
    what: str, need: int, memory: int, reserve: int, gguf_base: bool
) -> BadRecipe:
    larger = f"use a {what} of {_gb(memory_for(need, 'cuda' if what == 'card' else 'cpu'))}"
    return BadRecipe(
        "model.ship",
        f"merged, which takes {_gb(need)} of the {what}'s memory to merge the adapter into its "
        "base",
        _at_most(what, memory, reserve),
        larger if gguf_base else f"set model.ship to adapter, or {larger}",
    )


def _at_most(what: str, memory: int, reserve: int) -> str:
    room = max(0, memory - reserve)
    return f"at most {_gb(room)} ({_gb(memory)} of the {what}, less {_gb(reserve)} left alone)"


def _memory_advice(told: Forecast) -> str:
    """What helps, with what it brings: first what is enough, then what is not."""
    enough = [each for each in told.remedies if each.fits]
    lacking = sorted((each for each in told.remedies if not each.fits), key=lambda each: each.peak)
    said = [f"{each.change} would bring it to {_gb(each.peak)}" for each in enough]
    said += [f"{each.change} only to {_gb(each.peak)}" for each in lacking[: 3 - len(said)]]
    if not enough:
        what = "a card" if told.device == "cuda" else "a machine"
        said.append(
            f"use {what} of {_gb(memory_for(told.peak, told.device))}, or a smaller base model"
        )
    return "; ".join(said)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _refuse_compiling(recipe: Recipe) -> None:
    if recipe.plan.compile == "on" and (lacking := _lacks_to_compile()):
        raise BadRecipe(
            "plan.compile",
            f"on, where {lacking} was not found",
            "what torch.compile compiles with: a C++ compiler and Python's headers",
            "install g++ and python3-dev on the machine that trains (CXX may name another "
            "compiler), or set plan.compile to auto",
        )


def _refuse_sharing(recipe: Recipe) -> None:
    if recipe.plan.sharding != "fsdp":
        return
    lora = recipe.lora
    for reason, wrong in (
        ("a classifier", recipe.task == "text-classification"),
        ("quantization: nf4", recipe.quantization == "nf4"),
        ("lora.dora", lora.dora),
        ("lora.modules_to_save", bool(lora.modules_to_save)),
    ):
        if wrong:
            raise BadRecipe(
                "plan.sharding",
                f"fsdp with {reason}",
                "a language model in 16 or 32 bits, with a plain adapter",
                "set plan.sharding to ddp, or leave the other out",
            )


def _refuse_kernels(recipe: Recipe, inspected: Inspected) -> None:
    if recipe.plan.kernels != "liger":
        return
    device = "cuda" if count_gpus() else "cpu"
    lacking = _why_not_liger(recipe.task, device, inspected.architecture)
    if lacking:
        missing = device == "cuda" and importlib.util.find_spec("liger_kernel") is None
        raise BadRecipe(
            "plan.kernels",
            f"liger, but {lacking}",
            "a language model that Liger knows, on a GPU, with liger-kernel installed",
            ("pip install 'burnish[liger]', or " if missing else "")
            + "set plan.kernels to none or auto",
        )


def _refuse_small_test(recipe: Recipe, loaded: Loaded) -> None:
    have, need = loaded.rows["test"], recipe.gate.min_examples
    if have < need:
        raise BadRecipe(
            "gate.min_examples",
            f"{have} test examples among {sum(loaded.rows.values()):,}",
            f"at least {need}, or the gate rejects whatever is trained",
            "add data, raise data.split.test, or lower gate.min_examples (and widen gate.margin: "
            "fewer examples can show less)",
        )


def _refuse_targets(recipe: Recipe, inspected: Inspected) -> None:
    if recipe.lora.target_modules == ("all-linear",):
        return
    known = sorted({name.rsplit(".", 1)[-1] for name in inspected.linear_modules})
    for target in recipe.lora.target_modules:
        if not any(
            name == target or name.endswith(f".{target}") for name in inspected.linear_modules
        ):
            near = difflib.get_close_matches(target, known, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise BadRecipe(
                "lora.target_modules",
                f"'{target}', which matches no module of {inspected.architecture}{hint}",
                f"some of: {', '.join(known)}",
                "name modules from that list, or all-linear",
            )


def _refuse_length(recipe: Recipe, inspected: Inspected) -> None:
    limit, asked = inspected.max_length, recipe.training.max_length
    if limit is not None and asked > limit:
        raise BadRecipe(
            "training.max_length",
            f"{asked} tokens",
            f"at most {limit}, the model's own limit",
            f"set training.max_length to {limit} or less, or choose a model that reads more",
        )


def _refuse_gguf(recipe: Recipe, inspected: Inspected) -> None:
    kind = recipe.model.gguf
    if kind == "none":
        return
    if recipe.task == "text-classification":
        raise BadRecipe(
            "model.gguf",
            f"{kind} for a classifier",
            "a language model: llama.cpp and Ollama write texts",
            "set model.gguf to none",
        )
    script = find_converter()
    if script is None:
        said = f" ({VARIABLE} points at none)" if os.environ.get(VARIABLE) else ""
        raise BadRecipe(
            "model.gguf",
            f"{kind}, but no converter to GGUF on this machine{said}",
            "llama.cpp's convert_hf_to_gguf.py",
            f"run {how_to_install()}, or set model.gguf to none",
        )
    if lacks_module(script):
        raise BadRecipe(
            "model.gguf",
            f"a converter ({script}) without the module sentencepiece, which it imports",
            "the converter with what it imports",
            f"run {how_to_install()}, or install sentencepiece",
        )
    if not knows(script, inspected.architecture):
        raise BadRecipe(
            "model.gguf",
            f"{kind} of a {inspected.architecture}, which the converter ({script}) does not know",
            "an architecture that it names",
            f"set model.gguf to none, or {VARIABLE} to a newer checkout of llama.cpp",
        )


def _refuse_disk(recipe: Recipe, model: Source, inspected: Inspected) -> None:
    store = open_store(recipe.store)
    if not isinstance(store.objects, FolderObjects):
        return
    Path(store.uri).mkdir(parents=True, exist_ok=True)
    need = DISK_COPIES * sum(file.size for file in model.files)
    expected = f"{DISK_COPIES} times the base model"
    if recipe.model.gguf != "none":
        exported = round(GGUF_BYTES[recipe.model.gguf] * inspected.parameters)
        need += GGUF_COPIES * exported
        expected += f" and {GGUF_COPIES} times the GGUF file of {exported / 1e6:.0f} MB"
    free = shutil.disk_usage(store.uri).free
    if free < need:
        raise StorageFailed(
            f"store {store.uri}",
            f"no disk space: {free / 1e6:.0f} MB free",
            f"about {need / 1e6:.0f} MB, {expected}",
            "free some space, or name another store in the recipe",
        )
