"""The plan: how to train on a machine, where the recipe leaves it open, with a reason for each
pick."""

from __future__ import annotations

from typing import Any

from tasks.contracts.base import Contract
from tasks.contracts.forecast import Forecast
from tasks.contracts.machine import Machine
from tasks.contracts.plan import Plan
from tasks.contracts.recipe_data import Task
from tasks.contracts.recipe_training import PlanRecipe, TrainingRecipe

# On a CPU, plain attention was measured a fifth faster than the fused one at 128 tokens.
SHORT_TOKENS = 128
# Not measured yet on a GPU: only a long training can gain more than compiling costs.
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
FROM_RECIPE = "the recipe says so"


class PlanInputs(Contract):
    """What the plan depends on.

    Attributes:
        machine: That trains.
        settings: The recipe's `plan`: whatever is not `auto` is used as it is.
        tokens: Real tokens of one epoch; 0 if unknown.
        architecture: The base model's class in transformers; empty if unknown.
        forecast: The forecast, computed for the plan without checkpointing; None at first.
    """

    machine: Machine
    task: Task
    quantization: str
    training: TrainingRecipe
    settings: PlanRecipe
    tokens: int = 0
    architecture: str = ""
    forecast: Forecast | None = None

    @property
    def language(self) -> bool:
        """Whether a language model is trained."""
        return self.task != "text-classification"


def make_plan(inputs: PlanInputs) -> Plan:
    """Decide how to train: what the recipe leaves open is picked to suit the device and the
    task."""
    machine = inputs.machine
    device, gpus = machine.device, machine.gpus
    picks: dict[str, tuple[Any, str]] = {
        "device": (device, f"{gpus} found" if gpus else "no GPU was found"),
        "precision": _precision(inputs),
        "packing": _packing(inputs),
    }
    picks["attention"] = _attention(inputs, device, packed=picks["packing"][0])
    picks["optimizer"] = _optimizer(inputs, device)
    picks["checkpointing"] = _checkpointing(inputs)
    picks["compile"] = _compile(inputs, device)
    picks["kernels"] = _kernels(inputs)
    picks["world_size"] = _processes(inputs, gpus)
    fields = {name: value for name, (value, _) in picks.items()}
    sharding = "fsdp" if inputs.settings.sharding == "fsdp" else "ddp"
    return Plan(**fields, sharding=sharding, why={name: why for name, (_, why) in picks.items()})


def _precision(inputs: PlanInputs) -> tuple[str, str]:
    if inputs.training.precision != "auto":
        return inputs.training.precision, FROM_RECIPE
    fast = inputs.machine.bf16
    owner = "GPU" if inputs.machine.device == "cuda" else "processor"
    return "bf16" if fast else "fp32", f"the {owner} {'has' if fast else 'lacks'} bf16"


def _packing(inputs: PlanInputs) -> tuple[bool, str]:
    if not inputs.language:
        return False, "a classifier reads each text on its own"
    return _switch(inputs.settings.packing, True, "padding wastes compute")


def _attention(inputs: PlanInputs, device: str, packed: bool) -> tuple[str, str]:
    if inputs.settings.attention != "auto":
        return inputs.settings.attention, FROM_RECIPE
    if packed:
        return "packed", "packed examples must not see each other"
    short = inputs.training.max_length <= SHORT_TOKENS
    picked = "eager" if device == "cpu" and short else "sdpa"
    return picked, f"texts of {'few' if short else 'many'} tokens on the {device}"


def _optimizer(inputs: PlanInputs, device: str) -> tuple[str, str]:
    if inputs.settings.optimizer != "auto":
        return inputs.settings.optimizer, FROM_RECIPE
    if device == "cpu":
        return "adamw_torch", "the default on a CPU"
    if inputs.language and inputs.quantization == "nf4":
        return (
            "paged_adamw_8bit",
            "QLoRA is short of memory, and its state can be paged to the host",
        )
    return "adamw_torch_fused", "one kernel for all parameters"


def _checkpointing(inputs: PlanInputs) -> tuple[bool, str]:
    forecast = inputs.forecast
    if forecast is None or forecast.unknown:
        return _switch(
            inputs.settings.checkpointing, False, "no forecast says that memory is short"
        )
    short = "without it, the longest example would not fit into memory"
    why = short if forecast.checkpointing else "memory is not short"
    return _switch(inputs.settings.checkpointing, forecast.checkpointing, why)


def _compile(inputs: PlanInputs, device: str) -> tuple[bool, str]:
    total = inputs.tokens * inputs.training.epochs
    if not inputs.language:
        return _switch(inputs.settings.compile, False, "short texts train faster than they compile")
    if device == "cpu":
        # Measured on two cores with SmolLM2's shape in bf16: 0.98 times the tokens per second.
        return _switch(
            inputs.settings.compile, False, "a compiled model trains no faster on the CPU"
        )
    if lacking := inputs.machine.lacks_to_compile:
        return _switch(inputs.settings.compile, False, f"{lacking} was not found")
    pays = total >= COMPILE_TOKENS
    why = f"{total:,} tokens are {'enough' if pays else 'too few'} to pay for compiling"
    return _switch(inputs.settings.compile, pays, why)


def _kernels(inputs: PlanInputs) -> tuple[str, str]:
    if inputs.settings.kernels != "auto":
        return inputs.settings.kernels, FROM_RECIPE
    lacking = why_not_liger(inputs.task, inputs.architecture, inputs.machine)
    if inputs.settings.sharding == "fsdp":
        lacking = lacking or "Liger's have not been tested with a sharded model"
    if lacking:
        return "none", lacking
    return "liger", "norm, rotary embedding and gated MLP are one kernel each, and keep less"


def why_not_liger(task: str, architecture: str, machine: Machine) -> str:
    """Why Liger's kernels cannot be used; empty if they can."""
    if task == "text-classification":
        return "Liger's are used for language models only"
    if machine.device == "cpu":
        return "Liger's need a GPU"
    if not machine.has_liger:
        return "liger-kernel is not installed"
    if architecture not in LIGER_KNOWS:
        return f"Liger's do not support {architecture or 'the model'}"
    return ""


def _processes(inputs: PlanInputs, gpus: int) -> tuple[int, str]:
    if inputs.settings.processes:
        return inputs.settings.processes, FROM_RECIPE
    return max(1, gpus), "one per GPU" if gpus else "one process uses all cores"


def _switch(setting: str, picked: bool, why: str) -> tuple[bool, str]:
    return (picked, why) if setting == "auto" else (setting == "on", FROM_RECIPE)
