"""The memory of one training step of a language model, by part, traced without using it.

The step runs on torch's fake tensors, which have shapes but no content: the model's own code, its
adapter, the loss, backward pass and optimizer of `tasks.training.language`, under a tracker of all
memory. Only the configuration of the base is read.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tasks.contracts.plan import Plan
from tasks.contracts.recipe_training import LoraRecipe
from tasks.kernels import packed_attention
from tasks.models import causal, weights
from tasks.plan.cuda_memory import WORKSPACES, like_cuda, register_varlen
from tasks.plan.fake_model import (
    ADAPTERS,
    CONSTANTS,
    OUTER_BLOCK,
    WEIGHTS,
    config_of,
    fill,
    layer_count,
    meta_model,
)
from tasks.plan.memory_tracker import ACTIVATIONS, TRANSIENT, MemoryTracker
from tasks.training.forward import Forward
from tasks.training.language_batches import Batch, Example, Part, make_batch

GRADIENTS, OPTIMIZER, OVERHEAD = "gradients", "optimizer", "overhead"
PARTS = (WEIGHTS, CONSTANTS, ADAPTERS, GRADIENTS, OPTIMIZER, ACTIVATIONS, TRANSIENT, OVERHEAD)

# A deep model is extrapolated from these two depths: its layers are alike, so each peak is a linear
# function of their number.
_DEPTHS = (3, 5)
# Examples in a traced micro-batch: memory depends on its tokens, time on the examples.
_MAX_TRACED_EXAMPLES = 8
# What a process needs in addition, for any model. On a CPU: code and tables of the libraries that
# a first step loads, measured on the 6M shape of `tests.benchmarks.memory_forecast`. On a GPU:
# the workspace that CUBLAS_WORKSPACE_CONFIG=:4096:8 gives cuBLAS; not measured.
_OVERHEAD = {"cpu": 75 * 2**20, "cuda": 32 * 2**20}
# bitsandbytes keeps the optimizer's state of smaller tensors in fp32.
_LEAST_8BIT = 4096


@dataclass(frozen=True)
class Setting:
    """What memory depends on.

    Attributes:
        base: Folder with the base's configuration.
        lora: The adapter.
        quantization: none or nf4.
        plan: Fused kernels are not traced: they keep less, if anything.
        checkpointing: Whether activations are computed twice.
        tokens: Of a micro-batch.
        longest: Tokens of an example.
        target_share: Share of the tokens that are training targets.
        accumulates: Whether a step has several micro-batches.
    """

    base: Path
    lora: LoraRecipe
    quantization: str
    # It holds a dictionary of reasons, which cannot be hashed.
    plan: Plan = field(hash=False)
    checkpointing: bool
    tokens: int
    longest: int
    target_share: float
    accumulates: bool

    @property
    def cuda(self) -> bool:
        """Whether it trains on a GPU."""
        return self.plan.device == "cuda"


def peak(setting: Setting) -> dict[str, int]:
    """Bytes of each part of memory at the step's peak.

    Args:
        setting: What is trained, and how.
    """
    layers = layer_count(setting.base)
    if layers is None or layers <= _DEPTHS[1]:
        phases = trace(setting)
    else:
        fewer, more = (trace(setting, depth) for depth in _DEPTHS)
        phases = {phase: _extended(fewer[phase], more[phase], layers) for phase in more}
    fullest = max(phases.values(), key=lambda parts: sum(parts.values()))
    fullest[OVERHEAD] = _OVERHEAD[setting.plan.device]
    parts = {part: round(fullest.get(part, 0)) for part in PARTS}
    return _of_one_process(parts, setting, layers or 1)


def _of_one_process(parts: dict[str, int], setting: Setting, layers: int) -> dict[str, int]:
    """Memory of one of several processes. Formulas, not measured: with `ddp` each gradient has a
    copy in a bucket; with `fsdp` persistent memory is sharded, and two layers at a
    time are gathered."""
    count = setting.plan.world_size
    if count == 1:
        return parts
    if setting.plan.sharding == "ddp":
        return parts | {GRADIENTS: parts[GRADIENTS] + parts[ADAPTERS]}
    persistent = (WEIGHTS, CONSTANTS, ADAPTERS, GRADIENTS, OPTIMIZER)
    gathered = 2 * (parts[WEIGHTS] + parts[CONSTANTS]) // layers
    shared = {part: math.ceil(parts[part] / count) for part in persistent}
    return parts | shared | {TRANSIENT: parts[TRANSIENT] + gathered}


def trace(setting: Setting, depth: int | None = None) -> dict[str, dict[str, int]]:
    """For each phase of a training step, the bytes of each part at its peak.

    Args:
        setting: What is trained, and how.
        depth: Layers; None for as many as the model has.
    """
    with like_cuda() if setting.cuda else contextlib.nullcontext():
        model = _meta_model(setting, depth)
        batch = _batch(setting)
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            tracker = MemoryTracker(WORKSPACES)
            fill(model, tracker, weights.DTYPES[setting.plan.precision])
            step = _Step(setting, model, tracker)
            batch = _faked(batch, fake)
            with tracker:
                step.run(batch)
    return tracker.peaks("forward", "backward")


class _Step:
    """One training step, as `LanguageTrainer` does it."""

    def __init__(self, setting: Setting, model: torch.nn.Module, tracker: MemoryTracker) -> None:
        self._model, self._tracker, self._accumulates = model, tracker, setting.accumulates
        # The step runs as on a CPU; `like_cuda` replaces what differs.
        plan = setting.plan.model_copy(update={"device": "cpu"})
        self._forward = _UncheckedForward(model.get_base_model(), plan, [])
        if setting.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        self._trained = [each for each in model.parameters() if each.requires_grad]
        for each in self._trained:
            each.register_post_accumulate_grad_hook(self._has_gradient)
        self._optimizer = _optimizer(setting, self._trained)

    def run(self, batch: Batch) -> None:
        """Run a step that is not the first one: the optimizer has its state already."""
        self._tracker.begin("before")
        for each in self._trained:
            each.grad = torch.zeros_like(each)
            self._has_gradient(each)
        self._optimizer.step()
        self._tracker.own(_tensors_in(self._optimizer.state), OPTIMIZER)
        if not self._accumulates:
            self._optimizer.zero_grad()
        self._tracker.begin("forward")
        loss = self._forward(self._model, batch).nats.sum() / 1.0
        self._tracker.begin("backward")
        loss.backward()
        self._tracker.begin("optimizer")
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()

    def _has_gradient(self, parameter: torch.Tensor) -> None:
        self._tracker.own([parameter.grad], GRADIENTS)


class _UncheckedForward(Forward):
    """A `Forward` that skips its checks of the model: fake tensors have no numbers to compare."""

    def _probe(self, plan: Plan, warnings: list[str]) -> None:
        self.packing = plan.packing
        self.skips_logits = plan.sharding != "fsdp" and causal.head_looks_linear(self._base)


class _Adam8bit:
    """The memory of bitsandbytes' 8-bit AdamW (arXiv:2110.02861): two bytes per weight, and
    two fp32 scales for each block of 256."""

    def __init__(self, trained: list[torch.Tensor]) -> None:
        self._trained = trained
        self.state: dict[torch.Tensor, Any] = {}

    def step(self) -> None:
        """Allocate the state."""
        for each in self._trained:
            if each not in self.state:
                self.state[each] = [part for _ in range(2) for part in self._of(each)]

    def zero_grad(self) -> None:
        """Free the gradients."""
        for each in self._trained:
            each.grad = None

    @staticmethod
    def _of(weight: torch.Tensor) -> list[torch.Tensor]:
        if weight.numel() < _LEAST_8BIT:
            return [torch.empty_like(weight)]
        blocks = math.ceil(weight.numel() / OUTER_BLOCK)
        return [torch.empty_like(weight, dtype=torch.uint8), torch.empty(blocks)]


def _optimizer(setting: Setting, trained: list[torch.Tensor]) -> Any:
    name = setting.plan.optimizer
    if name.endswith("8bit"):
        return _Adam8bit(trained)
    kind = {"fused": True} if name.endswith("fused") else {"foreach": setting.cuda}
    return torch.optim.AdamW(trained, **kind)


def _meta_model(setting: Setting, depth: int | None) -> torch.nn.Module:
    packed_attention.register()
    attention = setting.plan.attention
    if setting.cuda and attention in (packed_attention.NAME, "flash_attention_2"):
        attention = register_varlen()
    return meta_model(
        config_of(setting.base, depth),
        dtype=weights.DTYPES[setting.plan.precision],
        attention=attention,
        quantization=setting.quantization,
        lora=setting.lora,
    )


class _SequenceEnds(list):
    """Where examples end, for `packed_attention.attend`, which reads their lengths: a fake tensor
    has no content."""

    def diff(self) -> _SequenceEnds:
        """The lengths."""
        return self

    def tolist(self) -> list[int]:
        """The lengths."""
        return list(self)


def _batch(setting: Setting) -> Batch:
    lengths = _lengths(setting)
    examples = []
    for number, length in enumerate(lengths):
        mask = np.zeros(length, np.uint8)
        mask[length - max(1, round(setting.target_share * length)) :] = 1
        mask[0] = 0
        examples.append(Example(number, (Part(np.zeros(length, np.int32), mask),)))
    batch = make_batch(examples, setting.plan.packing, "cpu")
    if setting.plan.packing:
        for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
            batch.inputs[name] = _SequenceEnds(lengths)
    return batch


def _lengths(setting: Setting) -> list[int]:
    """Lengths of examples that fill a micro-batch."""
    tokens, longest = setting.tokens, max(2, min(setting.longest, setting.tokens))
    if not setting.plan.packing:
        return [longest] * max(1, tokens // longest)
    window = getattr(config_of(setting.base).get_text_config(), "sliding_window", None)
    count = max(1, tokens // longest)
    if not window:
        count = min(count, _MAX_TRACED_EXAMPLES)
    return [tokens // count + (number < tokens % count) for number in range(count)]


def _faked(batch: Batch, fake: FakeTensorMode) -> Batch:
    def one(value: Any) -> Any:
        return fake.from_tensor(value) if isinstance(value, torch.Tensor) else value

    inputs = {name: one(value) for name, value in batch.inputs.items()}
    positions, targets, sequences = map(
        one, (batch.target_positions, batch.targets, batch.sequence_ids)
    )
    return Batch(inputs, positions, targets, sequences, batch.numbers, batch.tokens)


def _extended(fewer: dict[str, int], more: dict[str, int], layers: int) -> dict[str, float]:
    """Extrapolate a peak from two depths to the model's own."""
    few, many = _DEPTHS
    share = (layers - many) / (many - few)
    return {
        part: more.get(part, 0) + share * (more.get(part, 0) - fewer.get(part, 0))
        for part in {*fewer, *more}
    }


def _tensors_in(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict | list):
        for each in state.values() if isinstance(state, dict) else state:
            yield from _tensors_in(each)
