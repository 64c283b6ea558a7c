"""Load a released model the way a consumer loads it, for the programs that score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tasks.contracts.errors import BadModel
from tasks.contracts.jobs import ModelJob
from tasks.models import causal
from tasks.models.load_errors import release_load_errors


def load_language_model(job: ModelJob) -> torch.nn.Module:
    """Load the language model of a job the way a consumer loads one of its kind.

    Raises:
        BadModel: It cannot be loaded.
    """
    # A CPU computes in fp32 whatever the files hold: the weights are the same, and it is faster.
    dtype: torch.dtype | str = torch.float32 if job.device == "cpu" else "auto"
    if job.kind == "untrained":
        return causal.load_causal(job.base or job.model, dtype=dtype, device=job.device)
    if job.kind == "adapter":
        if job.quantization == "nf4" and job.device != "cpu":
            dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        base = causal.load_causal(
            job.base, dtype=dtype, quantization=job.quantization, device=job.device
        )
        with release_load_errors("PeftModel"):
            return add_adapter(base, job.model)
    try:
        return causal.load_causal(job.model, dtype=dtype, device=job.device)
    except BadModel as error:
        raise BadModel(
            "the model",
            error.found,
            error.expected,
            "start the run again: the model is produced anew",
        ) from error


def add_adapter(base: Any, folder: Path) -> torch.nn.Module:
    """Add the adapter in a folder to its base model."""
    # peft takes seconds to import, and a merged model does not need it.
    from peft import PeftModel

    return PeftModel.from_pretrained(base, folder)


def token_limit(max_length: int | None, tokenizer: Any, config: Any) -> int:
    """Maximum number of tokens that a model reads.

    Args:
        max_length: The job's limit; None for the tokenizer's, which is 10^30 if it has none.
        tokenizer: The model's tokenizer.
        config: The model's configuration.
    """
    return int(min(max_length or tokenizer.model_max_length, positions_of(config)))


def positions_of(config: Any) -> int:
    """Maximum number of positions of a model; a billion if it has no limit."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    # XLNet says -1.
    return positions if positions and positions > 0 else 10**9


def size_of(folder: Path) -> int:
    """Size of all files in a folder, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def wrong_answer(what: str, expected: str) -> BadModel:
    """The error for a model that loads but fails the smoke test."""
    return BadModel(
        "the model",
        what,
        expected,
        "train it again; if the error returns, the base model is broken",
    )
