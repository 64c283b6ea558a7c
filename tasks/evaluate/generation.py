"""Answers of a language model: greedy, many at once.

Prompts of like length are written on together, padded on the left, with the keys and values of
what was read already. The likeliest token is always taken, so the same model on the same device
gives the same answers. Whoever is done leaves the batch: the others go on faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from tasks.models import causal

# Keys and values of one batch, in bytes, on a CPU. On a GPU, a share of what is free.
_CACHE_BYTES = 2**30
_FREE_SHARE = 0.5
# A batch is made smaller when so many of its rows are done: that costs about as much as one step.
_DONE_SHARE = 0.2


class Generated(NamedTuple):
    """One answer.

    Attributes:
        ids: Its tokens, without the one that ended it.
        steps: Tokens that were computed for it, that one included.
    """

    ids: list[int]
    steps: int


class Generator:
    """Writes answers with one model.

    Args:
        model: A causal language model, in evaluation mode, without an adapter's wrapper.
        ends: Tokens that end an answer.
        pad: A token to pad with; it is never looked at.
    """

    def __init__(self, model: PreTrainedModel, ends: list[int], pad: int) -> None:
        self._model, self._pad = model, pad
        self._device = model.device
        self._ends = torch.tensor(sorted(ends), device=self._device)
        self._last_only = {"logits_to_keep": 1} if causal.accepts_logits_to_keep(model) else {}

    @torch.inference_mode()
    def write(
        self,
        prompts: list[list[int]],
        tokens: int,
        batch_size: int,
        progress: Callable[[int], Any] = lambda done: None,
    ) -> list[Generated]:
        """Answer every prompt.

        Args:
            prompts: Token ids, at least one each.
            tokens: How many an answer may have.
            batch_size: Prompts at once; fewer, where their keys and values take too much memory.
            progress: Told after each batch how many prompts are done.

        Returns:
            The answers, in the order of the prompts.
        """
        lengths = np.array([len(prompt) for prompt in prompts])
        # Longest first: what does not fit into memory fails at once.
        order = np.argsort(-lengths, kind="stable").tolist()
        found: dict[int, Generated] = {}
        while len(found) < len(order):
            start = len(found)
            size = min(batch_size, self._fitting(int(lengths[order[start]]) + tokens))
            rows = order[start : start + size]
            answers = self._write_batch([prompts[row] for row in rows], tokens)
            found.update(zip(rows, answers, strict=True))
            progress(len(found))
        return [found[row] for row in range(len(order))]

    def _write_batch(self, prompts: list[list[int]], tokens: int) -> list[Generated]:
        batch = _Batch(self._model, prompts, tokens, self._pad)
        answers: list[list[int]] = [[] for _ in prompts]
        ended = [False] * len(prompts)
        for step in range(tokens):
            following = batch.following(self._last_only)
            done = torch.isin(following, self._ends).tolist()
            for row, token, ends in zip(batch.rows, following.tolist(), done, strict=True):
                ended[row] = ended[row] or ends
                if not ended[row]:
                    answers[row].append(token)
            going = [place for place, row in enumerate(batch.rows) if not ended[row]]
            if not going or step + 1 == tokens:
                break
            if len(going) <= (1 - _DONE_SHARE) * len(batch.rows):
                following = following[batch.keep(going)]
            batch.go_on(following)
        return [Generated(ids, len(ids) + end) for ids, end in zip(answers, ended, strict=True)]

    def _fitting(self, length: int) -> int:
        """Rows whose keys and values fit into memory, at least one."""
        config = self._model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        row = 2 * config.num_hidden_layers * heads * size * length * self._model.dtype.itemsize
        free = _CACHE_BYTES
        if self._device.type == "cuda":
            free = int(_FREE_SHARE * torch.cuda.mem_get_info(self._device)[0])
        return max(1, free // row)


class _Batch:
    """Prompts that are written on together.

    Attributes:
        rows: Which prompts are still in it.
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
        # A processor is busy with one prompt already: read together, they are only padded.
        self._read_alone = self._padded and self._cache is not None and model.device.type == "cpu"

    def following(self, options: dict[str, Any]) -> torch.Tensor:
        """The token that comes next, for each row: int64 (rows)."""
        if self._read_alone:
            self._read_alone = False
            return self._read_one_by_one(options)
        found = self._model(
            input_ids=self._ids,
            # Attention without a mask is faster, and the same where nothing is padded.
            attention_mask=self._mask[:, : self._width] if self._padded else None,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            **options,
        )
        self._cache = found.past_key_values
        return found.logits[:, -1].argmax(-1)

    def _read_one_by_one(self, options: dict[str, Any]) -> torch.Tensor:
        """As `following`, of prompts that nothing was written behind yet."""
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

    def go_on(self, following: torch.Tensor) -> None:
        """Put a token behind each row."""
        self._ids = following[:, None]
        self._positions = self._positions[:, -1:] + 1
        self._width += 1

    def keep(self, places: list[int]) -> torch.Tensor:
        """Let all other rows go; returns the places as a tensor."""
        index = torch.tensor(places, device=self._mask.device)
        self.rows = [self.rows[place] for place in places]
        self._mask, self._positions = self._mask[index], self._positions[index]
        self._cache.batch_select_indices(index)
        return index


class _Roomy(DynamicLayer):
    """Keys and values with room for those that come: nothing is copied to append to them."""

    room = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._used = 0
            self._keys, self._values = map(self._spacious, (key_states, value_states))
        new = slice(self._used, self._used + key_states.shape[-2])
        self._keys[..., new, :], self._values[..., new, :] = key_states, value_states
        self._used = new.stop
        self._show()
        return self.keys, self.values

    def put(
        self, row: int, rows: int, start: int, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        """Take what was read of one row's prompt, which begins at `start`, behind its padding."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            self._keys, self._values = (
                states.new_zeros((rows, states.shape[1], self.room, states.shape[3]))
                for states in (keys, values)
            )
        self._used = start + keys.shape[-2]
        self._keys[row, :, start : self._used] = keys[0]
        self._values[row, :, start : self._used] = values[0]
        self._show()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._keys, self._values = self._keys[indices], self._values[indices]
        self._show()

    def _spacious(self, states: torch.Tensor) -> torch.Tensor:
        return states.new_empty((*states.shape[:-2], self.room, states.shape[-1]))

    def _show(self) -> None:
        self.keys, self.values = (
            states[..., : self._used, :] for states in (self._keys, self._values)
        )


def _cache(model: PreTrainedModel, room: int) -> DynamicCache | None:
    """A cache with room for a whole batch; None where the model's layers need another kind."""
    cache = DynamicCache(config=model.config)
    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [_Roomy() for _ in cache.layers]
    for layer in cache.layers:
        layer.room = room
    return cache
