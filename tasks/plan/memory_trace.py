"""One training step of a language model without memory: what each part of memory would hold.

The step runs on torch's fake tensors, which have shapes but no content: the model's own code, its
adapter, the loss, backward pass and optimizer of `tasks.training.language`, under a ledger of all
memory. Only the configuration of the base is read.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.kernels import packed_attention
from tasks.models import causal, weights
from tasks.plan.memory_tracker import ACTIVATIONS, TRANSIENT, MemoryTracker
from tasks.training import losses
from tasks.training.forward import Forward
from tasks.training.language_batches import Batch, Example, Part, make_batch

WEIGHTS, CONSTANTS, ADAPTERS = "weights", "quantization constants", "adapters"
GRADIENTS, OPTIMIZER, OVERHEAD = "gradients", "optimizer", "overhead"
PARTS = (WEIGHTS, CONSTANTS, ADAPTERS, GRADIENTS, OPTIMIZER, ACTIVATIONS, TRANSIENT, OVERHEAD)

# Of the two depths from which a deep model is told: its layers are alike, so that each peak is a
# linear function of their number.
_DEPTHS = (3, 5)
# Examples in a traced micro-batch: memory depends on its tokens, time on the examples.
_MAX_TRACED_EXAMPLES = 8
# nf4 with double quantisation (arXiv:2305.14314, section 3): half a byte a weight, one byte for
# each block of 64, and four for each 256 of those.
BLOCK, _OUTER_BLOCK = 64, 256
# What a process needs besides, whatever the model. On a CPU: code and tables of the libraries that
# a first step brings in, measured on the 6M shape of `tests.benchmarks.memory_forecast`. On a GPU:
# the workspace that CUBLAS_WORKSPACE_CONFIG=:4096:8 gives cuBLAS; not measured.
_OVERHEAD = {"cpu": 75 * 2**20, "cuda": 32 * 2**20}
# bitsandbytes keeps the optimizer's state of smaller tensors in fp32.
_LEAST_8BIT = 4096


@dataclass(frozen=True)
class Setting:
    """What memory depends on.

    Attributes:
        base: Folder with the base's configuration.
        lora: `LoraRecipe` as plain values.
        quantization: none or nf4.
        plan: `Plan` as plain values. Fused kernels are not traced: they keep less, if anything.
        checkpointing: Whether activations are computed twice.
        tokens: Of a micro-batch.
        longest: Tokens of an example.
        target_share: Share of the tokens that are training targets.
        accumulates: Whether a step has several micro-batches.
    """

    base: Path
    lora: dict[str, Any]
    quantization: str
    plan: dict[str, Any]
    checkpointing: bool
    tokens: int
    longest: int
    target_share: float
    accumulates: bool

    @property
    def cuda(self) -> bool:
        """Whether it trains on a GPU."""
        return self.plan["device"] == "cuda"


def peak(setting: Setting) -> dict[str, int]:
    """Bytes of each part of memory at the step's fullest moment.

    Args:
        setting: What is trained, and how.
    """
    layers = _layers(setting.base)
    if layers is None or layers <= _DEPTHS[1]:
        phases = trace(setting)
    else:
        fewer, more = (trace(setting, depth) for depth in _DEPTHS)
        phases = {phase: _extended(fewer[phase], more[phase], layers) for phase in more}
    fullest = max(phases.values(), key=lambda parts: sum(parts.values()))
    fullest[OVERHEAD] = _OVERHEAD[setting.plan["device"]]
    parts = {part: round(fullest.get(part, 0)) for part in PARTS}
    return _of_one_process(parts, setting, layers or 1)


def _of_one_process(parts: dict[str, int], setting: Setting, layers: int) -> dict[str, int]:
    """What one of several processes needs. Formulas, not measured: with `ddp` each gradient has a
    copy in a bucket; with `fsdp` what lasts is shared out, and two layers at a time are whole."""
    count = setting.plan.get("world_size", 1)
    if count == 1:
        return parts
    if setting.plan["sharding"] == "ddp":
        return parts | {GRADIENTS: parts[GRADIENTS] + parts[ADAPTERS]}
    lasting = (WEIGHTS, CONSTANTS, ADAPTERS, GRADIENTS, OPTIMIZER)
    whole = 2 * (parts[WEIGHTS] + parts[CONSTANTS]) // layers
    shared = {part: math.ceil(parts[part] / count) for part in lasting}
    return parts | shared | {TRANSIENT: parts[TRANSIENT] + whole}


def trace(setting: Setting, depth: int | None = None) -> dict[str, dict[str, int]]:
    """For each phase of a training step, the bytes of each part at its fullest moment.

    Args:
        setting: What is trained, and how.
        depth: Layers; None for as many as the model has.
    """
    with _like_cuda() if setting.cuda else contextlib.nullcontext():
        model = _without_memory(setting, depth)
        batch = _batch(setting)
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            ledger = MemoryTracker(_WORKSPACES)
            _fill(model, ledger, weights.DTYPES[setting.plan["precision"]])
            step = _Step(setting, model, ledger)
            batch = _faked(batch, fake)
            with ledger:
                step.run(batch)
    return ledger.peaks("forward", "backward")


class _Step:
    """One training step, as `LanguageTrainer` does it."""

    def __init__(self, setting: Setting, model: torch.nn.Module, ledger: MemoryTracker) -> None:
        self._model, self._ledger, self._accumulates = model, ledger, setting.accumulates
        # What runs here runs as on a CPU; `_like_cuda` sees to what differs.
        plan = setting.plan | {"device": "cpu"}
        self._forward = _UncheckedForward(model.get_base_model(), plan, [])
        if setting.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        self._trained = [each for each in model.parameters() if each.requires_grad]
        for each in self._trained:
            each.register_post_accumulate_grad_hook(self._has_gradient)
        self._optimizer = _optimizer(setting, self._trained)

    def run(self, batch: Batch) -> None:
        """A step that is not the first one: the optimizer has its state already."""
        self._ledger.begin("before")
        for each in self._trained:
            each.grad = torch.zeros_like(each)
            self._has_gradient(each)
        self._optimizer.step()
        self._ledger.own(_tensors_in(self._optimizer.state), OPTIMIZER)
        if not self._accumulates:
            self._optimizer.zero_grad()
        self._ledger.begin("forward")
        loss = self._forward(self._model, batch).nats.sum() / 1.0
        self._ledger.begin("backward")
        loss.backward()
        self._ledger.begin("optimizer")
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()

    def _has_gradient(self, parameter: torch.Tensor) -> None:
        self._ledger.own([parameter.grad], GRADIENTS)


class _UncheckedForward(Forward):
    """A `Forward` that cannot try what the model does: there are no numbers to compare."""

    def _find_out(self, plan: dict[str, Any], warnings: list[str]) -> None:
        self.packing = plan["packing"]
        self._fused = plan["sharding"] != "fsdp" and causal.head_looks_linear(self._base)


class _Adam8bit:
    """The memory of bitsandbytes' 8-bit AdamW (arXiv:2110.02861): two bytes a weight, and two
    fp32 scales for each block of 256."""

    def __init__(self, trained: list[torch.Tensor]) -> None:
        self._trained = trained
        self.state: dict[torch.Tensor, Any] = {}

    def step(self) -> None:
        """Have the state."""
        for each in self._trained:
            if each not in self.state:
                self.state[each] = [part for _ in range(2) for part in self._of(each)]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for each in self._trained:
            each.grad = None

    @staticmethod
    def _of(weight: torch.Tensor) -> list[torch.Tensor]:
        if weight.numel() < _LEAST_8BIT:
            return [torch.empty_like(weight)]
        blocks = math.ceil(weight.numel() / _OUTER_BLOCK)
        return [torch.empty_like(weight, dtype=torch.uint8), torch.empty(blocks)]


def _optimizer(setting: Setting, trained: list[torch.Tensor]) -> Any:
    name = setting.plan["optimizer"]
    if name.endswith("8bit"):
        return _Adam8bit(trained)
    kind = {"fused": True} if name.endswith("fused") else {"foreach": setting.cuda}
    return torch.optim.AdamW(trained, **kind)


def _without_memory(setting: Setting, depth: int | None) -> torch.nn.Module:
    """Base and adapter on the meta device, as `load_causal` and `attach_lora` make them."""
    packed_attention.register()
    dtype = weights.DTYPES[setting.plan["precision"]]
    config = config_of(setting.base, depth)
    attention = setting.plan["attention"]
    if setting.cuda and attention in (packed_attention.NAME, "flash_attention_2"):
        attention = _register_varlen()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
    if setting.quantization == "nf4":
        # Slow to import, and only needed here.
        from transformers.integrations.bitsandbytes import replace_with_bnb_linear

        head = causal.head_name(model)
        replace_with_bnb_linear(model, [head], weights.nf4(dtype, [head]))
        model.is_loaded_in_4bit = True
    return causal.attach_lora(model, setting.lora, 0)


def _fill(model: torch.nn.Module, ledger: MemoryTracker, dtype: torch.dtype) -> None:
    """Put fake tensors where the meta ones are, and enter them into the ledger."""
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        four_bit = hasattr(module, "quant_state") and hasattr(module, "compute_dtype")
        for name, old in list(module._parameters.items()):
            if old is None:
                continue
            if four_bit and name == "weight":
                module._parameters[name] = _nf4_weight(tuple(old.shape), dtype, ledger)
                continue
            if id(old) not in made:
                new = torch.empty(old.shape, dtype=old.dtype)
                made[id(old)] = torch.nn.Parameter(new, requires_grad=old.requires_grad)
                ledger.own([made[id(old)]], ADAPTERS if old.requires_grad else WEIGHTS)
            module._parameters[name] = made[id(old)]
        for name, old in list(module._buffers.items()):
            if old is not None:
                module._buffers[name] = torch.empty(old.shape, dtype=old.dtype)
                ledger.own([module._buffers[name]], WEIGHTS)


def _nf4_weight(
    shape: tuple[int, ...], dtype: torch.dtype, ledger: MemoryTracker
) -> torch.nn.Parameter:
    from bitsandbytes.functional import QuantState

    numbers = math.prod(shape)
    blocks = math.ceil(numbers / BLOCK)
    outer = QuantState(
        absmax=torch.empty(math.ceil(blocks / _OUTER_BLOCK)),
        code=torch.empty(256),
        blocksize=_OUTER_BLOCK,
        dtype=torch.float32,
    )
    state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8),
        shape=torch.Size(shape),
        code=torch.empty(16),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=dtype,
        offset=torch.empty(()),
        state2=outer,
    )
    packed = torch.empty(((numbers + 1) // 2, 1), dtype=torch.uint8)
    weight = torch.nn.Parameter(packed, requires_grad=False)
    weight.quant_state = state
    ledger.own([weight], WEIGHTS)
    ledger.own([state.absmax, state.code, state.offset, outer.absmax, outer.code], CONSTANTS)
    return weight


class _SequenceEnds(list):
    """Where examples end, for `packed_attention.attend`, which reads their lengths: a fake tensor
    has none."""

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
    batch = make_batch(examples, setting.plan["packing"], "cpu")
    if setting.plan["packing"]:
        for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
            batch.inputs[name] = _SequenceEnds(lengths)
    return batch


def _lengths(setting: Setting) -> list[int]:
    """Examples that fill a micro-batch."""
    tokens, longest = setting.tokens, max(2, min(setting.longest, setting.tokens))
    if not setting.plan["packing"]:
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


def config_of(folder: Path, depth: int | None = None) -> Any:
    """A model's configuration.

    Args:
        folder: The model.
        depth: Layers that it shall have; None for its own.
    """
    config = copy.deepcopy(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    if depth is not None:
        text = config.get_text_config()
        text.num_hidden_layers = depth
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:depth]
    return config


def _layers(folder: Path) -> int | None:
    """How many layers a model has; None where they are not alike."""
    config = config_of(folder).get_text_config()
    alike = len(set(getattr(config, "layer_types", None) or [0])) == 1
    return getattr(config, "num_hidden_layers", None) if alike else None


def _extended(fewer: dict[str, int], more: dict[str, int], layers: int) -> dict[str, float]:
    """What two depths say of another one."""
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


def _dequantized(arguments: tuple[Any, ...]) -> int:
    """Bytes that a product with a 4-bit weight needs: the weight, and the fp32 scale of each
    block, as `_gemm_4bit_default_impl` of bitsandbytes makes them."""
    hidden, _, shape = arguments[:3]
    return math.prod(shape) * hidden.element_size() + math.prod(shape) // BLOCK * 4


def _workspaces() -> dict[Any, Callable[[tuple[Any, ...]], int]]:
    import bitsandbytes  # noqa: F401 - registers its operations

    return {torch.ops.bitsandbytes.gemm_4bit.default: _dequantized}


_WORKSPACES = _workspaces()


def _register_varlen() -> str:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register("varlen", _varlen)
    AttentionMaskInterface.register("varlen", lambda *_, **__: None)
    return "varlen"


def _varlen(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, None]:
    """Memory of `packed_attention._on_cuda`."""
    flat = (tensor.transpose(1, 2).contiguous() for tensor in (query, key, value))
    return _VarLen.apply(*flat), None


class _VarLen(torch.autograd.Function):
    """Memory of FlashAttention 2 (arXiv:2307.08691): inputs, output and a row's logarithm of its
    sum are kept; going back, the query's gradient is summed in fp32."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        out = torch.empty_like(query)
        sums = torch.empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, _, sums = ctx.saved_tensors
        grad_query = torch.empty_like(query, dtype=torch.float32)
        grad_sums = torch.empty_like(sums)
        found = tuple(torch.empty_like(each) for each in (query, key, value))
        del grad_query, grad_sums, gradient
        return found


@contextlib.contextmanager
def _like_cuda() -> Iterator[None]:
    """Within it, operations that need other memory on a GPU do as they do there."""
    rows, dropout = losses.BYTES_AT_ONCE["cpu"], torch.nn.Dropout.forward
    losses.BYTES_AT_ONCE["cpu"] = losses.BYTES_AT_ONCE["cuda"]
    torch.nn.Dropout.forward = _native_dropout
    try:
        yield
    finally:
        losses.BYTES_AT_ONCE["cpu"], torch.nn.Dropout.forward = rows, dropout


def _native_dropout(module: torch.nn.Dropout, hidden: torch.Tensor) -> torch.Tensor:
    # Keeps a mask of one byte for each number; on a CPU it has the numbers' own format.
    if not module.training or not module.p:
        return hidden
    return torch.native_dropout(hidden, module.p, True)[0]
