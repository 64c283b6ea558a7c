"""Generate answers of a language model by greedy decoding, in batches.

Prompts of similar length form a batch, padded on the left, with a cache of keys and values. The
most probable token is always taken, so the same model on the same device gives the same answers.
Finished sequences leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from tasks.models import causal

# Bytes of the key-value cache of a batch on a CPU; on a GPU, a share of the free memory.
CACHE_BYTES = 2**30
_FREE_SHARE = 0.5
# A batch shrinks once this share of its rows is finished: that costs about as much as a step.
_FINISHED_SHARE = 0.2


class Generated(NamedTuple):
    """One generated answer.

    Attributes:
        ids: Its token ids, without the stop token.
        steps: Number of tokens that were computed, including the stop token.
    """

    ids: list[int]
    steps: int


class Generator:
    """Generates answers with one model.

    Args:
        model: A causal language model, in evaluation mode, without an adapter's wrapper.
        stop_ids: Ids of the stop tokens.
        pad: Id of the padding token, which is masked.
    """

    def __init__(self, model: PreTrainedModel, stop_ids: list[int], pad: int) -> None:
        self._model, self._pad = model, pad
        self._device = model.device
        self._stop_ids = torch.tensor(sorted(stop_ids), device=self._device)
        self._last_only = {"logits_to_keep": 1} if causal.accepts_logits_to_keep(model) else {}

    @torch.inference_mode()
    def generate(
        self,
        prompts: list[list[int]],
        tokens: int,
        batch_size: int,
        progress: Callable[[int], Any] = lambda done: None,
    ) -> list[Generated]:
        """Generate an answer to every prompt.

        Args:
            prompts: Token ids, at least one each.
            tokens: Maximum number of tokens of an answer.
            batch_size: Maximum prompts per batch; a batch is smaller if its cache would not fit.
            progress: Called after each batch with the number of finished prompts.

        Returns:
            The answers, in the order of the prompts.
        """
        lengths = np.array([len(prompt) for prompt in prompts])
        # Longest first: running out of memory shows at once.
        order = np.argsort(-lengths, kind="stable").tolist()
        found: dict[int, Generated] = {}
        while len(found) < len(order):
            start = len(found)
            size = min(batch_size, self._batch_size_for(int(lengths[order[start]]) + tokens))
            rows = order[start : start + size]
            answers = self._generate_batch([prompts[row] for row in rows], tokens)
            found.update(zip(rows, answers, strict=True))
            progress(len(found))
        return [found[row] for row in range(len(order))]

    def _generate_batch(self, prompts: list[list[int]], tokens: int) -> list[Generated]:
        batch = _Batch(self._model, prompts, tokens, self._pad)
        answers: list[list[int]] = [[] for _ in prompts]
        finished = [False] * len(prompts)
        for step in range(tokens):
            following = batch.next_tokens(self._last_only)
            stops = torch.isin(following, self._stop_ids).tolist()
            for row, token, stop in zip(batch.rows, following.tolist(), stops, strict=True):
                finished[row] = finished[row] or stop
                if not finished[row]:
                    answers[row].append(token)
            unfinished = [i for i, row in enumerate(batch.rows) if not finished[row]]
            if not unfinished or step + 1 == tokens:
                break
            if len(unfinished) <= (1 - _FINISHED_SHARE) * len(batch.rows):
                following = following[batch.keep(unfinished)]
            batch.append(following)
        return [
            Generated(ids, len(ids) + stop) for ids, stop in zip(answers, finished, strict=True)
        ]

    def _batch_size_for(self, length: int) -> int:
        """The number of rows of a length whose cache fits into memory, at least one."""
        config = self._model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        row = 2 * config.num_hidden_layers * heads * size * length * self._model.dtype.itemsize
        free = CACHE_BYTES
        if self._device.type == "cuda":
            free = int(_FREE_SHARE * torch.cuda.mem_get_info(self._device)[0])
        return max(1, free // row)


class _Batch:
    """Prompts that are continued together.

    Attributes:
        rows: Numbers of the prompts that are still in the batch.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: list[list[int]], tokens: int, pad: int
    ) -> None:
        self._model = model
        self.rows = list(range(len(prompts)))
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), pad)
        mask = torch.zeros(len(prompts), width + tokens, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        self._padded = not bool(mask.all())
        self._ids, self._mask = ids.to(model.device), mask.to(model.device)
        positions = (self._mask[:, :width].cumsum(1) - 1).clamp(min=0)
        self._positions, self._width = positions, width
        self._cache = _cache(model, width + tokens)
        # One prompt keeps a CPU busy, and reading prompts together would only add padding.
        self._read_alone = self._padded and self._cache is not None and model.device.type == "cpu"

    def next_tokens(self, options: dict[str, Any]) -> torch.Tensor:
        """The most probable next token of each row, int64, shape (rows,)."""
        if self._read_alone:
            self._read_alone = False
            return self._read_one_by_one(options)
        found = self._model(
            input_ids=self._ids,
            # Attention without a mask is faster, and equal without padding.
            attention_mask=self._mask[:, : self._width] if self._padded else None,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            **options,
        )
        self._cache = found.past_key_values
        return found.logits[:, -1].argmax(-1)

    def _read_one_by_one(self, options: dict[str, Any]) -> torch.Tensor:
        """As `next_tokens`, for prompts that have no answer yet."""
        following = []
        for row, mask in enumerate(self._mask[:, : self._width]):
            start = int(self._width - mask.sum())
            found = self._model(
                input_ids=self._ids[row : row + 1, start:],
                past_key_values=DynamicCache(config=self._model.config),
                use_cache=True,
                **options,
            )
            pairs = zip(self._cache.layers, found.past_key_values.layers, strict=True)
            for layer, read in pairs:
                layer.put(row, len(self._mask), start, read.keys, read.values)
            following.append(found.logits[:, -1].argmax(-1))
        return torch.cat(following)

    def append(self, following: torch.Tensor) -> None:
        """Append a token to each row."""
        self._ids = following[:, None]
        self._positions = self._positions[:, -1:] + 1
        self._width += 1

    def keep(self, kept: list[int]) -> torch.Tensor:
        """Drop all other rows; return the kept row numbers as a tensor."""
        index = torch.tensor(kept, device=self._mask.device)
        self.rows = [self.rows[i] for i in kept]
        self._mask, self._positions = self._mask[index], self._positions[index]
        self._cache.batch_select_indices(index)
        return index


class _PreallocatedLayer(DynamicLayer):
    """A cache layer with preallocated memory, so that appending copies nothing.

    Attributes:
        capacity: Number of positions.
    """

    capacity = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._used = 0
            self._keys, self._values = map(self._allocate, (key_states, value_states))
        new = slice(self._used, self._used + key_states.shape[-2])
        self._keys[..., new, :], self._values[..., new, :] = key_states, value_states
        self._used = new.stop
        self._expose()
        return self.keys, self.values

    def put(
        self, row: int, rows: int, start: int, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        """Store the keys and values of one row's prompt, which starts at `start` after padding."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            self._keys, self._values = (
                states.new_zeros((rows, states.shape[1], self.capacity, states.shape[3]))
                for states in (keys, values)
            )
        self._used = start + keys.shape[-2]
        self._keys[row, :, start : self._used] = keys[0]
        self._values[row, :, start : self._used] = values[0]
        self._expose()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._keys, self._values = self._keys[indices], self._values[indices]
        self._expose()

    def _allocate(self, states: torch.Tensor) -> torch.Tensor:
        return states.new_empty((*states.shape[:-2], self.capacity, states.shape[-1]))

    def _expose(self) -> None:
        self.keys, self.values = (
            states[..., : self._used, :] for states in (self._keys, self._values)
        )


def _cache(model: PreTrainedModel, capacity: int) -> DynamicCache | None:
    """A preallocated cache for a batch; None if the model's layers need another kind."""
    cache = DynamicCache(config=model.config)
    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [_PreallocatedLayer() for _ in cache.layers]
    for layer in cache.layers:
        layer.capacity = capacity
    return cache
