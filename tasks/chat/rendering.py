"""Render conversations as text, and locate the assistant's turns in it."""

from __future__ import annotations

from typing import Any, NamedTuple

from tasks.chat.coverage import check_coverage
from tasks.chat.messages import QUOTE_LENGTH, Message, assistant_turns, quote, text_content
from tasks.chat.prompt_join import continues_prompt, join_answer
from tasks.chat.template import Span, Template
from tasks.contracts.errors import BadData, BadModel, BurnishError


class Rendering(NamedTuple):
    """A sequence as text, ready to be tokenized.

    Attributes:
        text: The text.
        target_spans: Ranges of characters whose tokens are targets of the loss, in order.
        add_special_tokens: Whether the tokenizer adds its special tokens. Chat templates write
            their own.
        append_end: Whether the end token is appended to the last target span.
    """

    text: str
    target_spans: tuple[Span, ...]
    add_special_tokens: bool
    append_end: bool

    @property
    def answer_starts(self) -> tuple[int, ...]:
        """Where the answers start that follow a prompt."""
        return tuple(start for start, _ in self.target_spans if start)


def render_turns(
    template: Template, messages: list[Message], example: dict[str, Any]
) -> list[Rendering]:
    """Render a conversation so that every assistant turn is a target.

    Args:
        template: The tokenizer's chat template.
        messages: The conversation.
        example: The example that it belongs to; it may have `tools`.

    Returns:
        One rendering of the whole conversation if possible, else one per assistant turn.

    Raises:
        BadModel: The template refuses the conversation, or leaves out a part of it.
        BadData: The conversation has no turn to train on.
    """
    tools = example.get("tools")
    turns = assistant_turns(messages)
    messages = messages[: turns[-1] + 1]  # Nothing after it is a target.
    whole = template.render(messages, tools)
    spans = []
    for turn in turns:
        prompt = _prompt_for(template, messages, turn, tools)
        upto = whole if turn == len(messages) - 1 else template.render(messages[: turn + 1], tools)
        upto = upto[: template.end_of_last_turn(upto)]
        fits = prompt is not None and continues_prompt(template, prompt, upto, messages[turn])
        if not fits or not whole.startswith(upto):
            break
        spans.append((len(prompt), len(upto)))
    else:
        return _checked(template, [_rendering(template, whole, spans)], messages, tools)
    if template.has_generation_marks:
        text, marks = template.render_marked(messages, tools)
        marked = "".join(text[slice(*mark)] for mark in marks)
        if marked and text_content(messages[-1]).strip() in marked:
            return _checked(template, [_rendering(template, text, marks)], messages, tools)
    # A greeting by the assistant answers nothing: if it cannot be told apart, it is context only.
    own_turns = turns[1:] if turns[0] == 0 and len(turns) > 1 else turns
    parts = [_render_as_last(template, messages[: turn + 1], tools) for turn in own_turns]
    return _checked(template, parts, messages, tools)


def render_last_turn(
    template: Template, messages: list[Message], example: dict[str, Any]
) -> Rendering:
    """Render a conversation so that only the last assistant turn is a target.

    Args, Raises: as `render_turns`.
    """
    tools = example.get("tools")
    last = assistant_turns(messages)[-1]
    part = _render_as_last(template, messages[: last + 1], tools)
    return _checked(template, [part], messages[: last + 1], tools)[0]


def _render_as_last(
    template: Template, messages: list[Message], tools: list[Any] | None
) -> Rendering:
    """Render a conversation with its last message as the only target."""
    text = template.render(messages, tools)
    prompt = _prompt_for(template, messages, len(messages) - 1, tools)
    end = template.end_of_last_turn(text)
    if prompt is not None and continues_prompt(template, prompt, text[:end], messages[-1]):
        return _rendering(template, text, [(len(prompt), end)])
    if template.has_generation_marks:
        text, marks = template.render_marked(messages, tools)
        if marks:
            return _rendering(template, text, marks[-1:])
    answer = None if prompt is None else join_answer(template, prompt, messages, tools)
    if answer is not None:
        return _rendering(template, prompt + answer, [(len(prompt), len(prompt + answer))])
    if prompt is not None and text[:end].startswith(prompt):
        return _rendering(template, text, [(len(prompt), end)])
    if prompt is None or len(messages) == 1:
        raise BadData(
            "data",
            "a conversation that begins with the assistant",
            "a message that the assistant answers",
            "put a user message before it, or leave it out",
        )
    raise BadModel(
        "model.chat_template",
        "a chat template whose generation prompt "
        f"({quote(prompt[-QUOTE_LENGTH:])}) is not the beginning of the answer as it renders it",
        "a template that renders an answer right after its generation prompt",
        "set model.chat_template to one that does",
    )


def _prompt_for(
    template: Template, messages: list[Message], turn: int, tools: list[Any] | None
) -> str | None:
    """What a model is given before it writes a turn; None if the template cannot render it."""
    try:
        return template.render(messages[:turn], tools, prompt=True)
    except BadModel:
        if turn:
            raise
        return None


def _rendering(template: Template, text: str, spans: list[Span]) -> Rendering:
    append_end = not (spans and template.ends_with_special_token(text[slice(*spans[-1])]))
    return Rendering(text, tuple(spans), add_special_tokens=False, append_end=append_end)


def _checked(
    template: Template, parts: list[Rendering], messages: list[Message], tools: list[Any] | None
) -> list[Rendering]:
    """The renderings, if they leave nothing out (see `check_coverage`)."""

    def render_as_last(index: int) -> str:
        try:
            return _render_as_last(template, messages[: index + 1], tools).text
        except BurnishError:
            return template.render(messages[: index + 1], tools)

    check_coverage(template, [part.text for part in parts], messages, tools, render_as_last)
    return parts
