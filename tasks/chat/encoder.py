"""How an example becomes token ids, and which of them are learnt.

One code for training, scoring and what is shown to people. What is learnt: of a text, all of it and
its end; of a prompt and its completion, the completion and its end; of a conversation, what the
assistant says, each turn with the token that ends it. The end is never left out: a model that has
not learnt it does not stop.

A conversation is rendered by the tokenizer's chat template, once, and tokenized in one piece
without further special tokens (the template writes its own). A turn of the assistant begins where
the rendering of all that precedes it ends, with the prompt for an answer, and ends where the
rendering up to it does. Where that does not fit together (templates that strip the thinking of
earlier turns, or move the system's message), the template's own `{% generation %}` marks decide,
and without such marks each turn of the assistant becomes an example of its own, rendered as it is
when it is the last: just what a model is given when it serves. Where not even the last turn is
shown behind the prompt for it, prompt and answer are joined (see `tasks.chat.prompt_join`).
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.chat.messages import assistant_turns, content_of, conversation_of
from tasks.chat.rendering import Rendered, all_turns, last_turn
from tasks.chat.stop_tokens import no_end_token
from tasks.chat.template import Span, Template, special_tokens_of, template_of
from tasks.contracts.errors import BadData, BadModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """A sequence to train on.

    Attributes:
        ids: Token ids.
        loss_mask: For each, 1 where it is a target of the loss, else 0. The first is always 0, for
            nothing predicts it.
    """

    ids: list[int]
    loss_mask: list[int]


class ExampleEncoder:
    """Encodes the examples of one task with one tokenizer.

    Args:
        tokenizer: A fast tokenizer; of a chat, with its template.
        task: `completion`, `instruction` or `preference`.

    Raises:
        BadModel: The tokenizer has no end token, or lacks the chat template that the task needs.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, task: str) -> None:
        if tokenizer.eos_token_id is None:
            raise no_end_token()
        self._tokenizer, self._task = tokenizer, task
        self._end = tokenizer.eos_token_id
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = tokenizer.split_special_tokens
        self._templates: dict[bool, Template] = {}
        if task != "completion":
            self._template({})

    def render(self, example: dict[str, Any]) -> list[Rendered]:
        """An example's sequences: one; of a preference two, the chosen one first; of a
        conversation several, where the template shows earlier turns otherwise than the last.

        Raises:
            BadModel: The chat template refuses the conversation, or leaves out a part of it.
            BadData: The conversation has no turn to learn.
        """
        if self._task == "completion":
            return [_plain(example)]
        if self._task == "preference":
            ways = (example["prompt"] + example[side] for side in ("chosen", "rejected"))
            return [last_turn(self._template(example), way, example) for way in ways]
        return all_turns(self._template(example), example["messages"], example)

    def tokenize(self, rendered: list[Rendered]) -> list[Encoded]:
        """Token ids of many sequences, on all cores."""
        if not rendered:
            return []
        special = rendered[0].special
        found = self._backend.encode_batch(
            [each.text for each in rendered], add_special_tokens=special
        )
        return [self._encoded(*pair) for pair in zip(found, rendered, strict=True)]

    def decode(self, ids: list[int]) -> str:
        """The text that token ids stand for, special tokens and all."""
        return self._tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def prompt(self, example: dict[str, Any]) -> list[int]:
        """What a model is given to write the last answer."""
        if self._task == "completion":
            found = self._backend.encode(example.get("prompt", ""), add_special_tokens=True)
            first, last = _own_tokens(found)
            ids = found.ids[:last]
            return ids[:-1] if first == last and ids[-1:] == [self._end] else ids
        messages = conversation_of(example, self._task)
        last = assistant_turns(messages)[-1]
        text = self._template(example).render(messages[:last], example.get("tools"), prompt=True)
        return self._backend.encode(text, add_special_tokens=False).ids

    def _template(self, example: dict[str, Any]) -> Template:
        with_tools = bool(example.get("tools"))
        if with_tools not in self._templates:
            self._templates[with_tools] = template_of(self._tokenizer, with_tools)
        return self._templates[with_tools]

    def _encoded(self, found: Any, rendered: Rendered) -> Encoded:
        ids = found.ids
        first, last = _own_tokens(found) if rendered.special else (0, len(ids))
        loss_mask = _mask(found.offsets, rendered.spans, first, last)
        if rendered.special:
            loss_mask[last:] = [int(rendered.close)] * (len(ids) - last)
        elif rendered.close:
            cut = len(loss_mask) - loss_mask[::-1].index(1) if 1 in loss_mask else len(loss_mask)
            ids, loss_mask = ids[:cut], loss_mask[:cut]
        if rendered.close and (not ids or ids[-1] != self._end):
            ids, loss_mask = [*ids, self._end], [*loss_mask, 1]
        if loss_mask:
            loss_mask[0] = 0
        return Encoded(ids, loss_mask)


def encode_examples(
    tokenizer: PreTrainedTokenizerBase, examples: Iterable[dict[str, Any]], task: str
) -> list[list[Encoded]]:
    """As `encode_example`, for many at once.

    Raises:
        BadModel, BadData: As `encode_example`.
    """
    encoder = ExampleEncoder(tokenizer, task)
    rendered = [encoder.render(example) for example in examples]
    found = iter(encoder.tokenize([each for parts in rendered for each in parts]))
    groups = [[next(found) for _ in parts] for parts in rendered]
    for group in groups:
        check_loss_mask(group, task)
    return groups


def encode_example(
    tokenizer: PreTrainedTokenizerBase, example: dict[str, Any], task: str
) -> list[Encoded]:
    """Token ids of an example, and which of them are learnt.

    Args:
        tokenizer: As `training_tokenizer` reads it.
        example: `{"text"}` or `{"prompt", "completion"}` for completion; `{"messages"}`, maybe
            with `"tools"`, for instruction; `{"prompt", "chosen", "rejected"}`, each a list of
            messages, for preference.
        task: `completion`, `instruction` or `preference`.

    Returns:
        One; for preference two (chosen, rejected); for instruction several, one for each turn of
        the assistant, where the chat template shows earlier turns otherwise than the last one. The
        last of them is the last turn.

    Raises:
        BadModel: No end token, no chat template, or one that refuses the conversation or leaves
            out a part of it.
        BadData: There is nothing to learn in it.
    """
    return encode_examples(tokenizer, [example], task)[0]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, example: dict[str, Any], task: str
) -> list[int]:
    """What a model is given at serving time to write the last answer.

    Returns:
        Token ids: the beginning of the last sequence of `encode_example` (of a preference, of
        both). Of a text without a prompt, only what the tokenizer begins a text with, which may be
        nothing. Where a token straddles the border of prompt and completion, the prompt alone has
        other tokens at its end than the two together.

    Raises:
        BadModel: As `encode_example`.
    """
    return ExampleEncoder(tokenizer, task).prompt(example)


def reference(example: dict[str, Any], task: str) -> str:
    """The last answer's text: the completion (or the whole text), what the assistant says last, or
    what it says last in the chosen conversation. A tool call without words is given as JSON. A
    thought in the content is a part of it (see `spoken`)."""
    if task == "completion":
        return example["text"] if "text" in example else example["completion"]
    messages = conversation_of(example, task)
    message = messages[assistant_turns(messages)[-1]]
    calls = message.get("tool_calls")
    if calls and not content_of(message).strip():
        return json.dumps([call.get("function", call) for call in calls], ensure_ascii=False)
    return content_of(message)


def text_of(
    tokenizer: PreTrainedTokenizerBase, example: dict[str, Any], task: str, ids: list[int]
) -> str:
    """An answer as text: without special tokens, but with those that its thought stands between,
    where these are special.

    Args:
        tokenizer: As of `encode_prompt`.
        example: What is answered.
        task: `completion`, `instruction` or `preference`.
        ids: What was written.
    """
    tags = None if task == "completion" else template_of(tokenizer, bool(example.get("tools"))).tags
    left_out = [token for token in special_tokens_of(tokenizer) if token not in (tags or ())]
    gone = set(tokenizer.convert_tokens_to_ids(left_out))
    return tokenizer.decode(
        [number for number in ids if number not in gone],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    ).strip()


def spoken(
    tokenizer: PreTrainedTokenizerBase,
    example: dict[str, Any],
    task: str,
    text: str,
    *,
    written: bool,
) -> str:
    """What an answer says, without the thought before it: all there is to compare.

    Args:
        tokenizer: As of `encode_prompt`.
        example: What is answered.
        task: `completion`, `instruction` or `preference`.
        text: The answer.
        written: Whether it was written behind `encode_prompt`, which may have begun a thought. If
            that does not end, nothing is said.

    Returns:
        The text as it is, where the chat template knows of no thoughts.
    """
    if task == "completion":
        return text
    template = template_of(tokenizer, bool(example.get("tools")))
    return template.spoken(text, written=written)


def check_loss_mask(group: list[Encoded], task: str) -> None:
    """Refuse an example that would teach nothing, or what its reader says as well.

    Raises:
        BadData: It has no target tokens.
        BadModel: Every token of a conversation is a target.
    """
    if not all(any(each.loss_mask) for each in group):
        raise BadData(
            "data",
            "an example without target tokens",
            "an answer, or a text of two tokens or more",
            "correct it, or leave it out",
        )
    if task != "completion" and any(map(_learns_all, group)):
        raise BadModel(
            "model.chat_template",
            "a chat template by which every token is the assistant's",
            "a template that tells the turns apart",
            "correct its {% generation %} marks, or take them out",
        )


def _learns_all(encoded: Encoded) -> bool:
    """Whether no token before the last one that is learnt is only shown."""
    last = len(encoded.loss_mask) - encoded.loss_mask[::-1].index(1)
    return all(encoded.loss_mask[1:last])


# Plain texts


def _plain(example: dict[str, Any]) -> Rendered:
    if "text" in example:
        text, start = example["text"], 0
    else:
        start = len(example["prompt"])
        text = example["prompt"] + example["completion"]
    spans = ((start, len(text)),) if start < len(text) else ()
    return Rendered(text, spans, special=True, close=bool(text) and start < len(text))


# From characters to tokens


def _own_tokens(found: Any) -> Span:
    """The range of tokens that stand for text, not added around it."""
    added = found.special_tokens_mask
    first, last = 0, len(added)
    while first < last and added[first]:
        first += 1
    while last > first and added[last - 1]:
        last -= 1
    return first, last


def _mask(offsets: list[Span], spans: tuple[Span, ...], first: int, last: int) -> list[int]:
    """1 for each token with a character within a span, 0 for the others.

    Byte-level tokenizers leave spaces out of a token's range of characters: what stands for spaces
    alone has an empty range right behind them.
    """
    loss_mask = [0] * len(offsets)
    for start, end in spans:
        low = bisect_right(offsets, start, first, last, key=lambda place: place[1])
        high = low
        while high < last and (offsets[high][0] < end or offsets[high] == (end, end)):
            high += 1
        loss_mask[low:high] = [1] * (high - low)
    return loss_mask
