"""Encode examples as token ids with a loss mask.

Training, scoring and the samples in the report share this code. The targets of the loss are: of a
text, all tokens and its end; of a prompt with a completion, the completion and its end; of a
conversation, every assistant turn with the token that ends it. The end is always a target: a model
that is not trained on it does not stop.

A conversation is rendered once by the tokenizer's chat template, and tokenized in one piece without
additional special tokens, since the template writes its own. An assistant turn begins where the
rendering of everything before it ends, generation prompt included, and ends where the rendering up
to and including it ends. Templates that strip the reasoning from earlier turns, or that move the
system message, do not fit this scheme. For them the template's own `{% generation %}` marks decide.
Without such marks, each assistant turn becomes a sequence of its own, rendered as a last turn: just
what a model is given at serving time. If not even the last turn is rendered after its generation
prompt, prompt and answer are joined (see `tasks.chat.prompt_join`).

A model is served after the tokens of its prompt alone. If they are not the first tokens of prompt
and answer together (a prompt that ends with a space, an answer that begins with a line break), both
are tokenized separately, so that training shows the tokens that an answer follows in serving. Only
in the earlier turns of a conversation these may differ: there, serving has prompt and answer
together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.chat.messages import assistant_turns, conversation_of, text_content
from tasks.chat.rendering import Rendering, render_last_turn, render_turns
from tasks.chat.stop_tokens import no_end_token
from tasks.chat.template import Template, special_tokens_of, template_of
from tasks.chat.token_ranges import Tokens, loss_mask_of, text_token_range
from tasks.contracts.errors import BadData, BadModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """A sequence to train on.

    Attributes:
        ids: Token ids.
        loss_mask: For each token, 1 if it is a target of the loss, else 0. The first is always 0,
            because nothing predicts it.
        as_served: Whether every answer follows the tokens that its prompt is served with.
    """

    ids: list[int]
    loss_mask: list[int]
    as_served: bool = True


class ExampleEncoder:
    """Encodes the examples of one task with one tokenizer.

    Args:
        tokenizer: A fast tokenizer; with a chat template unless the task is `completion`.
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

    def render(self, example: dict[str, Any]) -> list[Rendering]:
        """Render an example as text.

        Returns:
            One rendering; for a preference two, the chosen one first; for a conversation one per
            assistant turn if the template renders earlier turns differently from the last.

        Raises:
            BadModel: The chat template refuses the conversation, or leaves out a part of it.
            BadData: The conversation has no turn to train on.
        """
        if self._task == "completion":
            return [_render_text(example)]
        if self._task == "preference":
            both = (example["prompt"] + example[side] for side in ("chosen", "rejected"))
            return [render_last_turn(self._template(example), each, example) for each in both]
        return render_turns(self._template(example), example["messages"], example)

    def tokenize(self, renderings: list[Rendering]) -> list[Encoded]:
        """Tokenize many sequences, on all cores."""
        if not renderings:
            return []
        special = renderings[0].add_special_tokens
        whole = self._token_batch([each.text for each in renderings], special)
        prompts = iter(
            self._token_batch(
                [each.text[:start] for each in renderings for start in each.answer_starts], special
            )
        )
        return [
            self._encoded(tokens, [next(prompts) for _ in each.answer_starts], each)
            for tokens, each in zip(whole, renderings, strict=True)
        ]

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, including special tokens."""
        return self._tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def prompt(self, example: dict[str, Any]) -> list[int]:
        """Token ids that a model is given to write the last answer; see `encode_prompt`."""
        if self._task == "completion":
            found = self._backend.encode(example.get("prompt", ""), add_special_tokens=True)
            first, last = text_token_range(found)
            ids = found.ids[:last]
            if first == last and ids[-1:] == [self._end]:
                return ids[:-1]
            return ids[self._doubled_begin(ids, first) :]
        messages = conversation_of(example, self._task)
        last = assistant_turns(messages)[-1]
        text = self._template(example).render(messages[:last], example.get("tools"), prompt=True)
        return self._backend.encode(text, add_special_tokens=False).ids

    def _template(self, example: dict[str, Any]) -> Template:
        with_tools = bool(example.get("tools"))
        if with_tools not in self._templates:
            self._templates[with_tools] = template_of(self._tokenizer, with_tools)
        return self._templates[with_tools]

    def _token_batch(self, texts: list[str], special: bool) -> list[Tokens]:
        """The tokens of texts, with or without those that the tokenizer adds."""
        found = self._backend.encode_batch(texts, add_special_tokens=special)
        return [
            Tokens(
                each.ids,
                each.offsets,
                *(text_token_range(each) if special else (0, len(each.ids))),
            )
            for each in found
        ]

    def _encoded(self, whole: Tokens, prompts: list[Tokens], rendering: Rendering) -> Encoded:
        """A sequence, from its tokens and those of each of its prompts alone."""
        merged = [
            start
            for start, prompt in zip(rendering.answer_starts, prompts, strict=True)
            if whole.ids[: prompt.last] != prompt.ids[: prompt.last]
        ]
        apart = None
        if merged:
            head = prompts[rendering.answer_starts.index(merged[0])]
            apart = self._apart(whole, head, rendering.text, merged)
        tokens, as_served = apart or whole, bool(apart) or not merged
        ids, (first, last) = tokens.ids, tokens[2:]
        mask = loss_mask_of(tokens.offsets, rendering.target_spans, first, last)
        if rendering.add_special_tokens:
            mask[last:] = [int(rendering.append_end)] * (len(ids) - last)
        elif rendering.append_end:
            end = len(mask) - mask[::-1].index(1) if 1 in mask else len(mask)
            ids, mask = ids[:end], mask[:end]
        if rendering.append_end and (not ids or ids[-1] != self._end):
            ids, mask = [*ids, self._end], [*mask, 1]
        if rendering.add_special_tokens:
            doubled = self._doubled_begin(ids, first)
            ids, mask = ids[doubled:], mask[doubled:]
        if mask:
            mask[0] = 0
        return Encoded(ids, mask, as_served)

    def _apart(self, whole: Tokens, head: Tokens, text: str, starts: list[int]) -> Tokens | None:
        """The tokens of a text whose answers are tokenized separately.

        Args:
            whole: The tokens of the text in one piece.
            head: The tokens of the text up to the first of these answers.
            text: The text.
            starts: Where the answers start.

        Returns:
            None if these tokens would be another text: some tokenizers write a space before every
            text.
        """
        end = self._tokenizer.eos_token
        for marker in ("", end):
            ids, offsets = head.ids[: head.last], head.offsets[: head.last]
            for start, stop in zip(starts, [*starts[1:], len(text)], strict=True):
                piece = self._backend.encode(marker + text[start:stop], add_special_tokens=False)
                # After the marker, the tokenizer takes the piece for a continuation.
                skipped = 1 if marker else 0
                ids = ids + piece.ids[skipped:]
                shift = start - len(marker)
                offsets = offsets + [(a + shift, b + shift) for a, b in piece.offsets[skipped:]]
            last = len(ids)
            ids, offsets = ids + whole.ids[whole.last :], offsets + whole.offsets[whole.last :]
            if self.decode(ids) == self.decode(whole.ids):
                return Tokens(ids, offsets, head.first, last)
        return None

    def _doubled_begin(self, ids: list[int], first: int) -> int:
        """Number of begin tokens to remove: 1 if the tokenizer added one to a text that starts with
        its own, because a chat template was applied to it before.

        Args:
            ids: The text's tokens, with what the tokenizer added.
            first: Index of the first token of the text itself.
        """
        begin = self._tokenizer.bos_token_id
        return int(0 < first < len(ids) and ids[first - 1] == ids[first] == begin)


def encode_examples(
    tokenizer: PreTrainedTokenizerBase, examples: Iterable[dict[str, Any]], task: str
) -> list[list[Encoded]]:
    """Encode many examples at once; see `encode_example`."""
    encoder = ExampleEncoder(tokenizer, task)
    renderings = [encoder.render(example) for example in examples]
    found = iter(encoder.tokenize([each for parts in renderings for each in parts]))
    groups = [[next(found) for _ in parts] for parts in renderings]
    for group in groups:
        check_loss_mask(group, task)
    return groups


def encode_example(
    tokenizer: PreTrainedTokenizerBase, example: dict[str, Any], task: str
) -> list[Encoded]:
    """Encode an example as token ids with a loss mask.

    Args:
        tokenizer: From `training_tokenizer`.
        example: `{"text"}` or `{"prompt", "completion"}` for completion; `{"messages"}`, optionally
            with `"tools"`, for instruction; `{"prompt", "chosen", "rejected"}`, each a list of
            messages, for preference.
        task: `completion`, `instruction` or `preference`.

    Returns:
        One sequence; for preference two (chosen, rejected); for instruction one per assistant turn,
        the last turn last, if the chat template renders earlier turns differently from the last.

    Raises:
        BadModel: The tokenizer has no end token or no chat template, or the template refuses the
            conversation or leaves out a part of it.
        BadData: The example has no target tokens.
    """
    return encode_examples(tokenizer, [example], task)[0]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, example: dict[str, Any], task: str
) -> list[int]:
    """Encode what a model is given at serving time to write the last answer.

    Returns:
        Token ids: the beginning of the last sequence of `encode_example` (for a preference, of
        both). For a text without a prompt, only the tokens that the tokenizer puts before every
        text, maybe none. If a token spans the boundary of prompt and completion, the last tokens
        of the prompt alone differ from those of both together.

    Raises:
        BadModel: As `encode_example`.
    """
    return ExampleEncoder(tokenizer, task).prompt(example)


def reference_answer(example: dict[str, Any], task: str) -> str:
    """The text of the last answer, including reasoning in its content (see `strip_reasoning`).

    This is the completion or the whole text, the last assistant message, or that of the chosen
    conversation. Tool calls without content are given as JSON.
    """
    if task == "completion":
        return example["text"] if "text" in example else example["completion"]
    messages = conversation_of(example, task)
    message = messages[assistant_turns(messages)[-1]]
    calls = message.get("tool_calls")
    if calls and not text_content(message).strip():
        return json.dumps([call.get("function", call) for call in calls], ensure_ascii=False)
    return text_content(message)


def decode_answer(
    tokenizer: PreTrainedTokenizerBase, example: dict[str, Any], task: str, ids: list[int]
) -> str:
    """Decode a generated answer without special tokens, except reasoning tags that are special.

    Args:
        tokenizer: As for `encode_prompt`.
        example: The example that is answered.
        task: `completion`, `instruction` or `preference`.
        ids: The generated token ids.
    """
    tags = None if task == "completion" else template_of(tokenizer, bool(example.get("tools"))).tags
    dropped = [token for token in special_tokens_of(tokenizer) if token not in (tags or ())]
    dropped_ids = set(tokenizer.convert_tokens_to_ids(dropped))
    return tokenizer.decode(
        [number for number in ids if number not in dropped_ids],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    ).strip()


def strip_reasoning(
    tokenizer: PreTrainedTokenizerBase,
    example: dict[str, Any],
    task: str,
    text: str,
    *,
    generated: bool,
) -> str:
    """Remove the reasoning before an answer: scores look only at the text after it.

    Args:
        tokenizer: As for `encode_prompt`.
        example: The example that is answered.
        task: `completion`, `instruction` or `preference`.
        text: The answer.
        generated: Whether it was generated after `encode_prompt`, which may open the reasoning. If
            the reasoning is never closed, the answer is empty.

    Returns:
        The answer; the text unchanged if the chat template handles no reasoning.
    """
    if task == "completion":
        return text
    template = template_of(tokenizer, bool(example.get("tools")))
    return template.strip_reasoning(text, generated=generated)


def check_loss_mask(group: list[Encoded], task: str) -> None:
    """Refuse an example without target tokens, and a conversation of target tokens only.

    Args:
        group: The sequences of one example.
        task: `completion`, `instruction` or `preference`.

    Raises:
        BadData: A sequence has no target tokens.
        BadModel: Every token of a conversation is a target.
    """
    if not all(any(each.loss_mask) for each in group):
        raise BadData(
            "data",
            "an example without target tokens",
            "an answer, or a text of two tokens or more",
            "correct it, or leave it out",
        )
    if task != "completion" and any(map(_has_no_context, group)):
        raise BadModel(
            "model.chat_template",
            "a chat template that marks every token as the assistant's",
            "a template that marks assistant turns only",
            "correct its {% generation %} marks, or remove them",
        )


def _has_no_context(encoded: Encoded) -> bool:
    """Whether every token up to the last target is a target, except the first."""
    last = len(encoded.loss_mask) - encoded.loss_mask[::-1].index(1)
    return all(encoded.loss_mask[1:last])


# Plain texts


def _render_text(example: dict[str, Any]) -> Rendering:
    if "text" in example:
        text, start = example["text"], 0
    else:
        start = len(example["prompt"])
        text = example["prompt"] + example["completion"]
    spans = ((start, len(text)),) if start < len(text) else ()
    append_end = bool(text) and start < len(text)
    return Rendering(text, spans, add_special_tokens=True, append_end=append_end)
