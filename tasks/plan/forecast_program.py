"""Forecasts the memory of training a language model, by a training step on fake tensors.

`tasks.plan.memory_trace` traces one step; this program finds the largest micro-batch that fits, and
what would help if none does.

Job: `ForecastJob`.
"""

from __future__ import annotations

import traceback
import warnings
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from tasks.contracts.errors import BurnishError
from tasks.contracts.forecast import Remedy
from tasks.contracts.jobs import ForecastJob, ForecastResult
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


def main(job: ForecastJob, reporter: Reporter) -> ForecastResult:
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
        return _no_forecast(one_line(error)[:300])


def _no_forecast(reason: str) -> ForecastResult:
    return ForecastResult(
        unknown=reason,
        parts={},
        checkpointing=False,
        micro_batch_tokens=0,
        trained_parameters=0,
        merge_memory=0,
        merge_host_memory=0,
        fits=True,
        remedies=(),
    )


class _Planner:
    """Finds the micro-batch that fits, and what would help if none does."""

    def __init__(self, job: ForecastJob) -> None:
        self._job, self._memory = job, job.memory
        self._longest = max(2, job.longest_example)
        self._known: dict[Setting, dict[str, int]] = {}

    def result(self) -> ForecastResult:
        """The program's result."""
        wanted = self._job.checkpointing
        # Without it steps are a third faster, so it comes second.
        for checkpointing in {"on": (True,), "off": (False,)}.get(wanted, (False, True)):
            setting = self._fitting(checkpointing)
            if setting is not None:
                return self._result(setting, fits=True)
        setting = self._setting(wanted != "off", self._least())
        return self._result(setting, fits=False)

    def _result(self, setting: Setting, fits: bool) -> ForecastResult:
        parts = self._peak(setting)
        merge, host = _merge_memory(setting, parts, self._job)
        remedies = [] if fits else self._remedies(setting)
        for need, have in ((merge, self._memory), (host, self._job.host_memory)):
            fits = fits and (not have or need <= have)
        return ForecastResult(
            unknown="",
            parts=parts,
            checkpointing=setting.checkpointing,
            micro_batch_tokens=setting.tokens,
            trained_parameters=parts[ADAPTERS] // 4,
            merge_memory=merge,
            merge_host_memory=host,
            fits=fits,
            remedies=tuple(remedies),
        )

    def _fitting(self, checkpointing: bool) -> Setting | None:
        """The largest micro-batch that fits; None if not even the smallest does."""
        least, most = self._setting(checkpointing, self._least()), self._most()
        best = replace(least, tokens=max(least.tokens, most))
        best = replace(best, accumulates=best.tokens < self._job.step_tokens)
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

    def _remedies(self, setting: Setting) -> list[Remedy]:
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
            Remedy(change=words, peak=total, fits=total <= self._memory)
            for words, changed in found
            if (total := sum(self._peak(changed).values())) < now
        ]
        for base, also in ((setting, ""), (together, all_words)):
            if not any(each.fits for each in remedies):
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
        if setting.lora.dropout:
            lora = setting.lora.model_copy(update={"dropout": 0.0})
            changes.append(("lora.dropout: 0", {"lora": lora}))
        return changes

    def _shorter(self, setting: Setting, also: str) -> list[Remedy]:
        """The longest example that would fit; empty if it is too short to be worth training on."""
        per = self._longest // self._job.max_length or 1
        shortest = replace(setting, tokens=_SHORTEST * per, longest=_SHORTEST * per)
        if setting.longest <= shortest.longest or not self._fits(shortest):
            return []
        full = replace(setting, tokens=self._longest)
        tokens = self._between(shortest, full).tokens
        total = sum(self._peak(replace(setting, tokens=tokens, longest=tokens)).values())
        words = f"training.max_length: {tokens // per}"
        words = f"{also} and {words}" if also else words
        return [Remedy(change=words, peak=total, fits=total <= self._memory)]

    def _fits(self, setting: Setting) -> bool:
        return not self._memory or sum(self._peak(setting).values()) <= self._memory

    def _least(self) -> int:
        return max(self._longest, self._job.micro_batch_tokens)

    def _most(self) -> int:
        if self._job.micro_batch_tokens:
            return self._least()
        limit = _CPU_TOKENS if self._job.plan.device == "cpu" else _MOST_TOKENS
        return max(self._longest, min(limit, self._job.step_tokens))

    def _setting(self, checkpointing: bool, tokens: int) -> Setting:
        job = self._job
        return Setting(
            base=job.base,
            lora=job.lora,
            quantization=job.quantization,
            plan=job.plan,
            checkpointing=checkpointing,
            tokens=tokens,
            longest=self._longest,
            target_share=job.target_share,
            accumulates=tokens < job.step_tokens,
        )

    def _peak(self, setting: Setting) -> dict[str, int]:
        if setting not in self._known:
            self._known[setting] = peak(setting)
        return self._known[setting]


def _merge_memory(setting: Setting, parts: dict[str, int], job: ForecastJob) -> tuple[int, int]:
    """Bytes that merging takes on the device and in host memory: see `tasks.models.merge`."""
    if job.ship != "merged":
        return 0, 0
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(setting.base), trust_remote_code=False)
    number, stored = weights.DTYPES[setting.plan.precision].itemsize, job.stored_bytes
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
    run(main, ForecastJob)
