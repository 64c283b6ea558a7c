"""Forecasts the memory of training a language model, by a training step on fake tensors.

`tasks.plan.memory_trace` traces one step; this program finds the largest micro-batch that fits, and
what would help if none does.

Job:
    base: folder; lora: recipe part; quantization: none or nf4; plan: `Plan`; ship: merged or
        adapter.
    checkpointing: on, off, or auto for whatever memory asks for.
    micro_batch_tokens: of one forward pass; 0: as many as fit.
    longest: tokens of the longest example (of both sides of a pair together): no micro-batch can
        have fewer.
    most_tokens: of an optimizer step, on one device: no micro-batch needs more.
    target_share: share of the tokens that are training targets.
    memory: bytes that training may take on one device; 0 where nobody knows.
    host_memory: bytes that merging may take on the machine; 0 where nobody knows.
    stored_bytes: of one weight in the base's files, and in those that ship.

Result: `parts`, `checkpointing`, `micro_batch_tokens`, `trained_parameters`, `shipping`,
    `shipping_host`, `fits`, `remedies` and `unknown`: see `tasks.contracts.forecast.Forecast`.
"""

from __future__ import annotations

import json
import traceback
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from tasks.contracts.errors import BurnishError
from tasks.models import adapter, causal, weights
from tasks.models.load_errors import one_line
from tasks.plan.fake_model import ADAPTERS, BLOCK, CONSTANTS, WEIGHTS, config_of
from tasks.plan.memory_trace import Setting, peak
from tasks.runtime.program import Reporter, run

# More tokens at once are no faster.
_MOST_TOKENS, _CPU_TOKENS = 65536, 4096
_ROUNDED, _TRIES = 64, 6
# Tokens; a shorter training.max_length is no advice.
_SHORTEST = 256


def main(job: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """See the module's description."""
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    reporter.progress(always=True, stage="tracing one training step")
    try:
        return _Planner(job).result()
    except BurnishError:
        raise
    except Exception as error:
        # An architecture that fake tensors cannot run is still one that may be trained.
        traceback.print_exc()
        return {"unknown": one_line(error)[:300]}


class _Planner:
    """Finds the micro-batch that fits, and what would help if none does."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job, self._memory = job, job["memory"]
        self._longest = max(2, job["longest"])
        self._known: dict[Setting, dict[str, int]] = {}

    def result(self) -> dict[str, Any]:
        """The program's result."""
        wanted = self._job["checkpointing"]
        # Without it steps are a third faster, so it comes second.
        for checkpointing in {"on": (True,), "off": (False,)}.get(wanted, (False, True)):
            setting = self._fitting(checkpointing)
            if setting is not None:
                return self._result(setting, fits=True)
        setting = self._setting(wanted != "off", self._least())
        return self._result(setting, fits=False)

    def _result(self, setting: Setting, fits: bool) -> dict[str, Any]:
        parts = self._peak(setting)
        shipping, host = _shipping(setting, parts, self._job)
        remedies = [] if fits else self._remedies(setting)
        for need, have in ((shipping, self._memory), (host, self._job["host_memory"])):
            fits = fits and (not have or need <= have)
        return {
            "unknown": "",
            "parts": parts,
            "checkpointing": setting.checkpointing,
            "micro_batch_tokens": setting.tokens,
            "trained_parameters": parts[ADAPTERS] // 4,
            "shipping": shipping,
            "shipping_host": host,
            "fits": fits,
            "remedies": remedies,
        }

    def _fitting(self, checkpointing: bool) -> Setting | None:
        """The largest micro-batch that fits; None if not even the smallest does."""
        least, most = self._setting(checkpointing, self._least()), self._most()
        best = replace(least, tokens=max(least.tokens, most))
        best = replace(best, accumulates=best.tokens < self._job["most_tokens"])
        if self._fits(best):
            return best
        if best.tokens == least.tokens or not self._fits(least):
            return None
        return self._between(least, best)

    def _between(self, fits: Setting, too_much: Setting) -> Setting:
        # Memory is linear in the tokens, with a constant part.
        low, high = (sum(self._peak(each).values()) for each in (fits, too_much))
        slope = (high - low) / (too_much.tokens - fits.tokens)
        tokens = fits.tokens + int((self._memory - low) / slope)
        for _ in range(_TRIES):
            rounded = tokens // _ROUNDED * _ROUNDED
            if rounded <= fits.tokens:
                break
            candidate = replace(fits, tokens=rounded)
            if self._fits(candidate):
                return candidate
            tokens = int(tokens * 0.95)
        return fits

    def _remedies(self, setting: Setting) -> list[dict[str, Any]]:
        """The peak with each change alone, then with all of them together; if that is not enough,
        also with shorter examples."""
        changes = self._changes(setting)
        found, together = [], setting
        for words, changed in changes:
            found.append((words, replace(setting, **changed)))
            together = replace(together, **changed)
        all_words = " and ".join(words for words, _ in changes)
        if len(changes) > 1:
            found.append((all_words, together))
        now = sum(self._peak(setting).values())
        remedies = [
            {"change": words, "peak": total, "fits": total <= self._memory}
            for words, changed in found
            if (total := sum(self._peak(changed).values())) < now
        ]
        for base, also in ((setting, ""), (together, all_words)):
            if not any(each["fits"] for each in remedies):
                remedies += self._shorter(base, also)
        return remedies

    def _changes(self, setting: Setting) -> list[tuple[str, dict[str, Any]]]:
        changes: list[tuple[str, dict[str, Any]]] = []
        if setting.quantization == "none":
            changes.append(("quantization: nf4", {"quantization": "nf4"}))
        if not setting.checkpointing:
            changes.append(("plan.checkpointing: on", {"checkpointing": True}))
        if setting.tokens > self._longest:
            changes.append((f"plan.micro_batch_tokens: {self._longest}", {"tokens": self._longest}))
        if setting.lora["dropout"]:
            lora = {**setting.lora, "dropout": 0.0}
            changes.append(("lora.dropout: 0", {"lora": lora}))
        return changes

    def _shorter(self, setting: Setting, also: str) -> list[dict[str, Any]]:
        """The longest example that would fit; empty if it is too short to be worth training on."""
        per = self._longest // self._job["max_length"] or 1
        shortest = replace(setting, tokens=_SHORTEST * per, longest=_SHORTEST * per)
        if setting.longest <= shortest.longest or not self._fits(shortest):
            return []
        full = replace(setting, tokens=self._longest)
        tokens = self._between(shortest, full).tokens
        total = sum(self._peak(replace(setting, tokens=tokens, longest=tokens)).values())
        words = f"training.max_length: {tokens // per}"
        words = f"{also} and {words}" if also else words
        return [{"change": words, "peak": total, "fits": total <= self._memory}]

    def _fits(self, setting: Setting) -> bool:
        return not self._memory or sum(self._peak(setting).values()) <= self._memory

    def _least(self) -> int:
        return max(self._longest, self._job["micro_batch_tokens"])

    def _most(self) -> int:
        if self._job["micro_batch_tokens"]:
            return self._least()
        limit = _CPU_TOKENS if self._job["plan"]["device"] == "cpu" else _MOST_TOKENS
        return max(self._longest, min(limit, self._job["most_tokens"]))

    def _setting(self, checkpointing: bool, tokens: int) -> Setting:
        job = self._job
        return Setting(
            base=Path(job["base"]),
            lora=_Frozen(job["lora"]),
            quantization=job["quantization"],
            plan=_Frozen(job["plan"]),
            checkpointing=checkpointing,
            tokens=tokens,
            longest=self._longest,
            target_share=job["target_share"],
            accumulates=tokens < job["most_tokens"],
        )

    def _peak(self, setting: Setting) -> dict[str, int]:
        key = replace(setting, lora=_Frozen(setting.lora))
        if key not in self._known:
            self._known[key] = peak(setting)
        return self._known[key]


class _Frozen(dict):
    """Plain values that are hashable."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True))


def _shipping(setting: Setting, parts: dict[str, int], job: dict[str, Any]) -> tuple[int, int]:
    """Bytes that merging takes on the device and in host memory: see `tasks.models.merge`."""
    if job["ship"] != "merged":
        return 0, 0
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(setting.base), trust_remote_code=False)
    number, stored = weights.DTYPES[setting.plan["precision"]].itemsize, job["stored_bytes"]
    sizes = [each.numel() for each in model.parameters()]
    linear = adapter.linear_modules(model, [causal.head_name(model)])
    layer = max(model.get_submodule(name).weight.numel() for name in linear)
    # One tensor at a time: a layer in fp32, a copy of it, the adapter's product, and a mask of its
    # finite values; or the largest tensor, if it ships in another format.
    one = max(13 * layer, stored * max(sizes) if stored != number else 0)
    # In addition the model, as it is read or ships; and the adapter, with its file.
    host = sum(sizes) * max(number, stored) + 2 * parts[ADAPTERS] + one
    if not setting.cuda or setting.quantization != "nf4":
        return 0, host
    # As in training; and one layer: its weights in 16 and in 4 bits, and the scale of each block.
    one = layer * (number + 1) + layer // BLOCK * 4
    return parts[WEIGHTS] + parts[CONSTANTS] + one, host


if __name__ == "__main__":
    run(main)
