"""Preflight: checks that refuse a run that would fail later, before a GPU is requested."""

from __future__ import annotations

import difflib
import os
import shutil

from tasks.base_model.gguf_step import is_gguf
from tasks.contracts.artifacts import Source
from tasks.contracts.base import Contract
from tasks.contracts.errors import BadRecipe, StorageFailed
from tasks.contracts.forecast import Forecast
from tasks.contracts.machine import Machine
from tasks.contracts.recipe_data import Task
from tasks.contracts.recipe_training import LoraRecipe, PlanRecipe
from tasks.contracts.results import Inspected, Loaded
from tasks.contracts.task_tables import LEAST_SUPPORT, MACRO
from tasks.plan.memory_limits import memory_for
from tasks.plan.plan import why_not_liger
from tasks.runtime.context import RunContext
from tasks.runtime.gguf_converter import VARIABLE, how_to_install
from tasks.storage.remote_sources import hub_model
from tasks.storage.store import open_store

# Checkpoints of adapter and optimizer, the merged model in fp32, and its published copy.
DISK_COPIES = 4
# In the store, staged to be published, and at a folder that is a target.
GGUF_COPIES = 3
# A weight in q8_0: 32 weights of 8 bits share a scale of 16 bits
# (https://github.com/ggml-org/llama.cpp, ggml/src/ggml-common.h).
GGUF_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 34 / 32}


class PreflightInputs(Contract):
    """What can be checked before training.

    Attributes:
        machine: That trains.
        settings: The recipe's `plan`.
        max_length: Tokens of the longest example after truncation.
        gguf: The type of the GGUF file that ships beside the model, or `none`.
        base: The base model.
    """

    machine: Machine
    task: Task
    quantization: str
    lora: LoraRecipe
    settings: PlanRecipe
    max_length: int
    gguf: str
    base: Source
    loaded: Loaded
    inspected: Inspected


def refuse_early(inputs: PreflightInputs, context: RunContext) -> None:
    """Refuse a run that would fail later.

    Raises:
        BadRecipe: The recipe requires kernels, compiling or processes that the machine cannot
            provide, LoRA targets match no module, the maximum length exceeds the model's, or the
            GGUF file cannot be made.
        StorageFailed: The store's disk is too full for what training will write.
    """
    _refuse_processes(inputs)
    _refuse_sharing(inputs)
    _refuse_kernels(inputs)
    _refuse_compiling(inputs)
    _refuse_targets(inputs)
    _refuse_length(inputs)
    _refuse_gguf(inputs)
    _refuse_disk(inputs, context)


def refuse_adapter(ship: str, base: Source) -> None:
    """Refuse an adapter that peft could not load: its base cannot be a GGUF file, or in a folder of
    a Hub repository.

    Args:
        ship: `merged` or `adapter`.
        base: The base model, resolved and not converted.

    Raises:
        BadRecipe: The recipe ships an adapter of such a base.
    """
    if ship == "adapter" and is_gguf(base):
        raise BadRecipe(
            "model.ship",
            f"adapter, of a base that is a GGUF file ({base.uri})",
            "a base that an adapter can be loaded on: a model in safetensors",
            "set model.ship to merged, or model.uri to the original model in safetensors",
        )
    hub = hub_model(base.uri)
    if ship == "adapter" and hub and hub[1]:
        raise BadRecipe(
            "model.ship",
            f"adapter, of a base in the folder {hub[1]!r} of the repository {hub[0]}",
            "a base at the top of its repository: an adapter cannot name a folder in it",
            "set model.ship to merged",
        )


def refuse_memory(
    forecast: Forecast, *, memory_declared: bool = False, gguf_base: bool = False
) -> None:
    """Refuse a training that does not fit into memory, and say what would.

    Args:
        forecast: The memory that it needs.
        memory_declared: Whether the recipe says how much memory the card has.
        gguf_base: Whether the base is a GGUF file, of which only a merged model can ship.

    Raises:
        BadRecipe: Training, or merging the adapter, needs more than there is.
    """
    if forecast.fits or forecast.unknown:
        return
    if forecast.memory and forecast.peak > forecast.memory - forecast.reserve:
        raise _too_large_to_train(forecast, memory_declared)
    merging = (
        ("card", forecast.merge_memory, forecast.memory, forecast.reserve),
        ("machine", forecast.merge_host_memory, forecast.host_memory, forecast.host_reserve),
    )
    for what, need, memory, reserve in merging:
        if memory and need > memory - reserve:
            raise _too_large_to_merge(what, need, memory, reserve, gguf_base)


def _too_large_to_train(forecast: Forecast, memory_declared: bool) -> BadRecipe:
    parts = sorted(forecast.parts.items(), key=lambda part: -part[1])[:3]
    return BadRecipe(
        "plan.device_memory_gb" if memory_declared else "training.max_length",
        f"{_gb(forecast.peak)} to train with {forecast.micro_batch_tokens:,} tokens at once ("
        + ", ".join(f"{name} {_gb(size)}" for name, size in parts)
        + ")",
        _at_most(
            "card" if forecast.device == "cuda" else "machine", forecast.memory, forecast.reserve
        ),
        _memory_advice(forecast),
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
    usable = max(0, memory - reserve)
    return f"at most {_gb(usable)} ({_gb(memory)} of the {what}, less a reserve of {_gb(reserve)})"


def _memory_advice(forecast: Forecast) -> str:
    """What would help, with the memory that it leads to: first what is enough, then what is not."""
    enough = [each for each in forecast.remedies if each.fits]
    lacking = sorted(
        (each for each in forecast.remedies if not each.fits), key=lambda each: each.peak
    )
    advice = [f"{each.change} would bring it to {_gb(each.peak)}" for each in enough]
    advice += [f"{each.change} only to {_gb(each.peak)}" for each in lacking[: 3 - len(advice)]]
    if not enough:
        what = "a card" if forecast.device == "cuda" else "a machine"
        need = memory_for(forecast.peak, forecast.device)
        advice.append(f"use {what} of {_gb(need)}, or a smaller base model")
    return "; ".join(advice)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _refuse_compiling(inputs: PreflightInputs) -> None:
    if inputs.settings.compile == "on" and (lacking := inputs.machine.lacks_to_compile):
        raise BadRecipe(
            "plan.compile",
            f"on, where {lacking} was not found",
            "what torch.compile compiles with: a C++ compiler and Python's headers",
            "install g++ and python3-dev on the machine that trains (CXX may name another "
            "compiler), or set plan.compile to auto",
        )


def _refuse_processes(inputs: PreflightInputs) -> None:
    machine, processes = inputs.machine, inputs.settings.processes
    if machine.device == "cuda" and processes > machine.gpus:
        raise BadRecipe(
            "plan.processes",
            f"{processes}, where a process may use {machine.gpus} GPUs",
            "at most one process for each GPU",
            f"set plan.processes to {machine.gpus} or 0, or give the worker more GPUs "
            "(CUDA_VISIBLE_DEVICES)",
        )


def _refuse_sharing(inputs: PreflightInputs) -> None:
    if inputs.settings.sharding != "fsdp":
        return
    lora = inputs.lora
    for reason, wrong in (
        ("a classifier", inputs.task == "text-classification"),
        ("quantization: nf4", inputs.quantization == "nf4"),
        ("lora.dora", lora.dora),
        ("lora.modules_to_save", bool(lora.modules_to_save)),
    ):
        if wrong:
            raise BadRecipe(
                "plan.sharding",
                f"fsdp with {reason}",
                "a language model in 16 or 32 bits, with a plain adapter",
                "set plan.sharding to ddp, or remove the other setting",
            )


def _refuse_kernels(inputs: PreflightInputs) -> None:
    if inputs.settings.kernels != "liger":
        return
    machine = inputs.machine
    lacking = why_not_liger(inputs.task, inputs.inspected.architecture, machine)
    if lacking:
        missing = machine.device == "cuda" and not machine.has_liger
        raise BadRecipe(
            "plan.kernels",
            f"liger, but {lacking}",
            "a language model that Liger knows, on a GPU, with liger-kernel installed",
            ("pip install 'burnish[liger]', or " if missing else "")
            + "set plan.kernels to none or auto",
        )


def refuse_small_test(loaded: Loaded, min_examples: int) -> None:
    """Refuse a test set that is too small for the gate, before the base model is even read.

    Args:
        loaded: The data.
        min_examples: Test examples that the gate requires.

    Raises:
        BadRecipe: The gate would reject every candidate.
    """
    have, need = loaded.rows["test"], min_examples
    if have < need:
        raise BadRecipe(
            "gate.min_examples",
            f"{have} test examples among {sum(loaded.rows.values()):,}",
            f"at least {need}, or the gate rejects every candidate",
            "add data, raise data.split.test, or lower gate.min_examples (and widen gate.margin: "
            "fewer examples prove less)",
        )


def refuse_small_labels(labels: dict[str, dict[str, int]], metric: str) -> None:
    """Refuse labels with so few test rows that the gate could not average over them.

    Args:
        labels: Rows by label and split, as in the data report.
        metric: The recipe's `gate.metric`.

    Raises:
        BadRecipe: The gate would reject every candidate.
    """
    small = {label: rows["test"] for label, rows in labels.items() if rows["test"] < LEAST_SUPPORT}
    if metric in MACRO and small:
        label = min(small, key=lambda each: small[each])
        more = f", and {len(small) - 1} more labels have too few" if len(small) > 1 else ""
        raise BadRecipe(
            "gate.metric",
            f"{metric}, and {small[label]} test examples of the label {label!r}{more}",
            f"at least {LEAST_SUPPORT} of each label, since a metric averaged over labels depends "
            "on each as much as on all others",
            "add examples, raise data.split.test, or set gate.metric to accuracy",
        )


def _refuse_targets(inputs: PreflightInputs) -> None:
    if inputs.lora.target_modules == ("all-linear",):
        return
    known = sorted({name.rsplit(".", 1)[-1] for name in inputs.inspected.linear_modules})
    for target in inputs.lora.target_modules:
        if not any(
            name == target or name.endswith(f".{target}")
            for name in inputs.inspected.linear_modules
        ):
            near = difflib.get_close_matches(target, known, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise BadRecipe(
                "lora.target_modules",
                f"'{target}', which matches no module of {inputs.inspected.architecture}{hint}",
                f"some of: {', '.join(known)}",
                "name modules from that list, or all-linear",
            )


def _refuse_length(inputs: PreflightInputs) -> None:
    limit, length = inputs.inspected.max_length, inputs.max_length
    if limit is not None and length > limit:
        raise BadRecipe(
            "training.max_length",
            f"{length} tokens",
            f"at most {limit}, the model's own limit",
            f"set training.max_length to {limit} or less, or choose a model with a longer context",
        )


def _refuse_gguf(inputs: PreflightInputs) -> None:
    kind = inputs.gguf
    if kind == "none":
        return
    if inputs.task == "text-classification":
        raise BadRecipe(
            "model.gguf",
            f"{kind} for a classifier",
            "a language model: llama.cpp and Ollama generate text",
            "set model.gguf to none",
        )
    converter = inputs.machine.converter
    if converter is None:
        hint = f" ({VARIABLE} points to none)" if os.environ.get(VARIABLE) else ""
        raise BadRecipe(
            "model.gguf",
            f"{kind}, but no converter to GGUF on the machine that trains{hint}",
            "llama.cpp's convert_hf_to_gguf.py",
            f"run {how_to_install()}, or set model.gguf to none",
        )
    if not converter.complete:
        raise BadRecipe(
            "model.gguf",
            f"a converter ({converter.script}) without the module sentencepiece, which it imports",
            "the converter with what it imports",
            f"run {how_to_install()}, or install sentencepiece",
        )
    architecture = inputs.inspected.architecture
    if architecture not in converter.architectures:
        raise BadRecipe(
            "model.gguf",
            f"{kind} of a {architecture}, which the converter ({converter.script}) does not know",
            "an architecture that it names",
            f"set model.gguf to none, or {VARIABLE} to a newer checkout of llama.cpp",
        )


def _refuse_disk(inputs: PreflightInputs, context: RunContext) -> None:
    folder = open_store(context.store).scratch_parent
    folder.mkdir(parents=True, exist_ok=True)
    need = DISK_COPIES * sum(file.size for file in inputs.base.files)
    expected = f"{DISK_COPIES} times the base model"
    if inputs.gguf != "none":
        exported = round(GGUF_BYTES[inputs.gguf] * inputs.inspected.parameters)
        need += GGUF_COPIES * exported
        expected += f" and {GGUF_COPIES} times the GGUF file of {exported / 1e6:.0f} MB"
    free = shutil.disk_usage(folder).free
    if free < need:
        raise StorageFailed(
            f"folder {folder}",
            f"no disk space: {free / 1e6:.0f} MB free",
            f"about {need / 1e6:.0f} MB, {expected}",
            "free some space. This folder is in the store if that is a folder, else in the "
            "temporary folder (TMPDIR)",
        )
