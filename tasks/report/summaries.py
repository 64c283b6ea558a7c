"""One sentence per step, for the report's table of steps.

Shards count as new only in the run that read or tokenized them: a reused result names its own run.
"""

from __future__ import annotations

from tasks.contracts.results import (
    Comparisons,
    Finetuned,
    Loaded,
    Scored,
    Tokenized,
)


def llm_judge_sentence(compared: Comparisons) -> str:
    """The LLM judge's counts."""
    return (
        f"{compared.llm_judge}: preferred {compared.preferred:.4f}, {compared.wins} wins, "
        f"{compared.ties} ties ({compared.inconsistent} changed with the order, "
        f"{compared.unreadable} without a verdict), {compared.losses} losses"
    )


def metrics_sentence(scored: Scored) -> str:
    """A model's metrics on the test examples."""
    return ", ".join(f"{name} {value:.4f}" for name, value in scored.metrics.items())


def load_sentence(loaded: Loaded, run_id: str) -> str:
    """Rows by split, and new shards."""
    rows = ", ".join(f"{count:,} {split}" for split, count in loaded.rows.items())
    return f"{rows}; {_shards(loaded, 'read', run_id)}"


def tokenize_sentence(tokenized: Tokenized, run_id: str) -> str:
    """Tokens, truncated texts and new shards."""
    targets = (
        f", {tokenized.target_tokens:,} of them training targets" if tokenized.target_tokens else ""
    )
    left_out = f", {tokenized.left_out:,} left out" if tokenized.left_out else ""
    return (
        f"{tokenized.tokens:,} tokens{targets}, {tokenized.truncated:,} texts truncated{left_out}; "
        f"{_shards(tokenized, 'tokenized', run_id)}"
    )


def _shards(result: Loaded | Tokenized, verb: str, run_id: str) -> str:
    new = result.new_shards if result.provenance and result.provenance.run_id == run_id else 0
    return f"{new} of {result.shards} shards newly {verb}"


def finetune_sentence(finetuned: Finetuned) -> str:
    """Steps, validation metric and best epoch."""
    metrics = finetuned.metrics
    shown = "accuracy" if "f1" in metrics else "loss"
    resumed = f"; it went on from {finetuned.resumed}" if finetuned.resumed else ""
    return (
        f"{finetuned.steps} steps, validation {shown} {metrics[shown]:.4f}, "
        f"best epoch {finetuned.best_epoch:g}{resumed}"
    )
