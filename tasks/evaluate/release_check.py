"""Check a candidate before it is released: it is the model that was trained, and it works for a
consumer.

A consumer calls transformers' `pipeline` with the files that ship, as the model card says, also
with texts that are far too long, and a language model with its own generation configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tasks.contracts.errors import BadModel
from tasks.evaluate import released_model
from tasks.models.load_errors import one_line

MAX_DIFFERENCE, MAX_RELATIVE_DIFFERENCE = 0.02, 0.02
"""How far the losses of training and of the files that ship may be apart, in nats and relative to
the loss. Both round differently: training computes with a quantized base or in bf16, and what ships
was merged and stored in the dtype of the base's files."""
CHECKED_TOKENS = 16
"""Test examples whose tokens are compared with a consumer's."""
_LONGEST_TRIAL = 20_000


def check_loss(shipped: float, trained: float, examples: int) -> None:
    """Compare the loss of the files that ship with that of the best epoch in training.

    Args:
        shipped, trained: Nats per target token, or per example of a classifier.
        examples: How many validation examples they were computed on.

    Raises:
        BadModel: They differ by more than rounding does.
    """
    allowed = max(MAX_DIFFERENCE, MAX_RELATIVE_DIFFERENCE * abs(trained))
    if np.isfinite(shipped) and abs(shipped - trained) <= allowed:
        return
    raise BadModel(
        "the model that ships",
        f"a loss of {shipped:.4f} on {examples} validation examples",
        f"{trained:.4f}, as at the best epoch of its training, give or take {allowed:.4f}",
        "try another model.ship or quantization: none, and report this base model: its files do "
        "not hold what was trained",
    )


def check_tokens(scored: list[Any], served: list[Any]) -> None:
    """Compare the inputs that a model is scored with, which are those of training, with what the
    tokenizer that ships gives a consumer.

    Args:
        scored, served: For each of a few examples, its token ids (and token types); None for one
            that is not compared.

    Raises:
        BadModel: They differ.
    """
    different = [
        number
        for number, (ours, theirs) in enumerate(zip(scored, served, strict=True))
        if theirs is not None and ours != theirs
    ]
    if not different:
        return
    first = different[0]
    raise BadModel(
        "the tokenizer that ships",
        f"other tokens for {len(different)} of {len(scored)} examples, such as "
        f"{_shortened(served[first])}",
        f"the tokens of training: {_shortened(scored[first])}",
        "report this base model and its chat template: a consumer would give the model what it was "
        "not trained on",
    )


def _shortened(tokens: Any) -> str:
    shown = str(tokens)
    return shown if len(shown) < 100 else f"{shown[:50]} … {shown[-50:]}"


def served_tokens(tokenizer: Any, example: dict[str, Any], chat: bool) -> list[int] | None:
    """The tokens that a consumer gives a language model for an example's prompt.

    Returns:
        None if that is up to the consumer: tools and their calls have several forms, and a text
        that already has its special tokens would get them twice.
    """
    if chat:
        messages = example.get("messages") or example["prompt"]
        if example.get("tools") or any(set(each) - {"role", "content"} for each in messages):
            return None
        answers = [number for number, each in enumerate(messages) if each["role"] == "assistant"]
        # The prompt of a preference has no answer.
        asked = messages[: answers[-1]] if "messages" in example else messages
        return tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    text = example.get("prompt", "")
    found = tokenizer(text)["input_ids"]
    special = set(tokenizer.all_special_ids)
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    return None if not text or special & set(plain) or found[-1:] != plain[-1:] else found


def try_classifier(model: Any, folder: Path, device: str) -> None:
    """Classify a short text and one that is far too long, as a consumer does.

    Raises:
        BadModel: A call fails.
    """
    labels = set(model.config.id2label.values())

    def call(pipeline: Any, tokenizer: Any) -> None:
        for text in ("A text.", _long_text(tokenizer)):
            found = pipeline(text, truncation=True)[0]
            if found["label"] not in labels or not np.isfinite(found["score"]):
                raise ValueError(f"{found}, not one of its labels")

    _try("text-classification", model, folder, device, call)


def try_language_model(model: Any, folder: Path, device: str, chat: bool) -> None:
    """Generate a token after a short text and one that is far too long, as a consumer does.

    Args:
        model: The language model, with the generation configuration that ships.
        folder: The files that ship.
        device: The model's device.
        chat: Whether it is given conversations.

    Raises:
        BadModel: A call fails.
    """

    def call(pipeline: Any, tokenizer: Any) -> None:
        pipeline(
            [{"role": "user", "content": "A question?"}] if chat else "A text", max_new_tokens=1
        )
        # A text has more tokens than the model takes; conversations are cut by whoever has them.
        ids = tokenizer(_long_text(tokenizer), truncation=True, return_tensors="pt").to(device)
        model.generate(**ids, max_new_tokens=1)

    _try("text-generation", model, folder, device, call)


def _try(
    task: str, model: Any, folder: Path, device: str, call: Callable[[Any, Any], None]
) -> None:
    from transformers import AutoTokenizer, pipeline

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        call(pipeline(task, model=model, tokenizer=tokenizer, device=device), tokenizer)
    except Exception as error:
        raise released_model.wrong_answer(
            f"pipeline({task!r}), which raises {type(error).__name__}: {one_line(error)}",
            "a model that a consumer can use with its own files",
        ) from error


def _long_text(tokenizer: Any) -> str:
    """A text that is longer than the tokenizer's limit."""
    return "A text. " * min(int(tokenizer.model_max_length), _LONGEST_TRIAL)
