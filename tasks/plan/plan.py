"""What the recipe leaves open, settled and shown before anything is keyed; and what must be
refused before a GPU is asked for."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

from tasks.contracts.forecast import Forecast
from tasks.contracts.plan import Plan
from tasks.contracts.recipe import Recipe
from tasks.runtime.hardware import count_gpus

BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
# On a CPU, plain attention was measured a fifth faster than the fused one at 128 tokens.
SHORT_TOKENS = 128
# Not measured yet on a GPU: only a long job gains enough to bother.
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
        return "packed", "packed examples must not see each other"
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
        # Measured on two cores with SmolLM2's shape in bf16: 0.98 times the tokens per second.
        return _switch(recipe.plan.compile, False, "a compiled model trains no faster on the CPU")
    if lacking := lacks_to_compile():
        return _switch(recipe.plan.compile, False, f"{lacking} was not found")
    pays = total >= COMPILE_TOKENS
    why = f"{total:,} tokens are {'enough' if pays else 'too few'} to pay for compiling"
    return _switch(recipe.plan.compile, pays, why)


def lacks_to_compile() -> str:
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
    lacking = why_not_liger(recipe.task, device, architecture)
    if recipe.plan.sharding == "fsdp":
        lacking = lacking or "Liger's were not tried on a model that is shared out"
    if lacking:
        return "none", lacking
    return "liger", "norm, rotary embedding and gated MLP are one kernel each, and keep less"


def why_not_liger(task: str, device: str, architecture: str) -> str:
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
