"""What the recipe leaves open, settled and shown before anything is keyed; and what must be
refused before a GPU is asked for."""

from __future__ import annotations

import difflib
import shutil
import subprocess
from pathlib import Path

from tasks.contracts.artifact import Inspected, Loaded, Plan, Source
from tasks.contracts.recipe import Recipe
from tasks.errors import BadRecipe, StorageFailed
from tasks.objects import FolderObjects
from tasks.store import open_store

BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
# On a CPU, plain attention was measured a fifth faster than the fused one at 128 tokens.
SHORT_TOKENS = 128
# Checkpoints of adapter and optimizer, the merged model in fp32, and its published copy.
DISK_COPIES = 4


def make_plan(recipe: Recipe) -> Plan:
    """Settle device and precision for the machine that trains."""
    device = "cuda" if has_gpu() else "cpu"
    short = recipe.training.max_length <= SHORT_TOKENS
    attention = "eager" if device == "cpu" and short else "sdpa"
    precision, why = recipe.training.precision, "the recipe says so"
    if precision == "auto":
        fast = device == "cuda" or bool(BF16_FLAGS & processor_flags())
        precision = "bf16" if fast else "fp32"
        why = f"the {'GPU' if device == 'cuda' else 'processor'} {'has' if fast else 'lacks'} bf16"
    return Plan(
        device=device,
        precision=precision,
        attention=attention,
        optimizer="adamw_torch_fused" if device == "cuda" else "adamw_torch",
        why={
            "device": "a GPU was found" if device == "cuda" else "no GPU was found",
            "precision": why,
            "attention": f"texts of {'few' if short else 'many'} tokens on the {device}",
        },
    )


def has_gpu() -> bool:
    """Whether an NVIDIA GPU answers. Asked without torch, which takes seconds to import."""
    if not shutil.which("nvidia-smi"):
        return False
    asked = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    return asked.returncode == 0 and "GPU" in asked.stdout


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
        BadRecipe: LoRA targets match nothing, the length exceeds the model's, or the test set is
            smaller than the gate asks for.
        StorageFailed: The store's disk is too full for what training will write.
    """
    _refuse_small_test(recipe, loaded)
    _refuse_targets(recipe, inspected)
    _refuse_length(recipe, inspected)
    _refuse_disk(recipe, model)


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


def _refuse_disk(recipe: Recipe, model: Source) -> None:
    store = open_store(recipe.store)
    if not isinstance(store.objects, FolderObjects):
        return
    Path(store.uri).mkdir(parents=True, exist_ok=True)
    need = DISK_COPIES * sum(file.size for file in model.files)
    free = shutil.disk_usage(store.uri).free
    if free < need:
        raise StorageFailed(
            f"store {store.uri}",
            f"no disk space: {free / 1e6:.0f} MB free",
            f"about {need / 1e6:.0f} MB, {DISK_COPIES} times the base model",
            "free some space, or name another store in the recipe",
        )
