"""How a conversation becomes sequences, and where in them the assistant speaks."""

from __future__ import annotations

from typing import Any, NamedTuple

from tasks.chat.coverage import check_shown
from tasks.chat.messages import EXCERPT, Message, assistant_turns, content_of, short
from tasks.chat.prompt_join import answer_behind, goes_on
from tasks.chat.template import Span, Template
from tasks.contracts.errors import BadData, BadModel, BurnishError


class Rendered(NamedTuple):
    """A sequence as text.

    Attributes:
        text: What is tokenized.
        spans: Ranges of characters that are learnt, in order.
        special: Whether the tokenizer adds its special tokens. A chat template wrote them itself.
        close: Whether the end token is put behind the last span.
    """

    text: str
    spans: tuple[Span, ...]
    special: bool
    close: bool


def all_turns(template: Template, messages: list[Message], example: Message) -> list[Rendered]:
    """Every turn of the assistant: in one rendering if that can be, else each in its own.

    Args:
        template: The tokenizer's chat template.
        messages: The conversation.
        example: That it is from, maybe with `tools`.

    Raises:
        BadModel: The template refuses the conversation, or leaves out a part of it.
        BadData: The conversation has no turn to learn.
    """
    tools = example.get("tools")
    turns = assistant_turns(messages)
    messages = messages[: turns[-1] + 1]  # nothing behind is learnt
    whole = template.render(messages, tools)
    spans = []
    for turn in turns:
        given = _given(template, messages, turn, tools)
        own = whole if turn == len(messages) - 1 else template.render(messages[: turn + 1], tools)
        own = own[: template.end_of(own)]
        fits = given is not None and goes_on(template, given, own, messages[turn])
        if not fits or not whole.startswith(own):
            break
        spans.append((len(given), len(own)))
    else:
        return _checked(template, [_rendered(template, whole, spans)], messages, tools)
    if template.marked:
        text, marks = template.render_marked(messages, tools)
        said = "".join(text[slice(*mark)] for mark in marks)
        if said and content_of(messages[-1]).strip() in said:
            return _checked(template, [_rendered(template, text, marks)], messages, tools)
    # The assistant's greeting answers nothing: where it cannot be told apart, it is only shown.
    own_turns = turns[1:] if turns[0] == 0 and len(turns) > 1 else turns
    parts = [_own_turn(template, messages[: turn + 1], tools) for turn in own_turns]
    return _checked(template, parts, messages, tools)


def last_turn(template: Template, messages: list[Message], example: Message) -> Rendered:
    """The last turn of the assistant alone; see `all_turns`."""
    tools = example.get("tools")
    last = assistant_turns(messages)[-1]
    part = _own_turn(template, messages[: last + 1], tools)
    return _checked(template, [part], messages[: last + 1], tools)[0]


def _own_turn(template: Template, messages: list[Message], tools: list[Any] | None) -> Rendered:
    """The last turn of a conversation, by itself."""
    text = template.render(messages, tools)
    given = _given(template, messages, len(messages) - 1, tools)
    end = template.end_of(text)
    if given is not None and goes_on(template, given, text[:end], messages[-1]):
        return _rendered(template, text, [(len(given), end)])
    if template.marked:
        text, marks = template.render_marked(messages, tools)
        if marks:
            return _rendered(template, text, marks[-1:])
    answer = None if given is None else answer_behind(template, given, messages, tools)
    if answer is not None:
        return _rendered(template, given + answer, [(len(given), len(given + answer))])
    if given is not None and text[:end].startswith(given):
        return _rendered(template, text, [(len(given), end)])
    if given is None or len(messages) == 1:
        raise BadData(
            "data",
            "a conversation that the assistant begins",
            "something that it answers",
            "put a message of the user's before it, or leave it out",
        )
    raise BadModel(
        "model.chat_template",
        "a chat template whose prompt for an answer "
        f"({short(given[-EXCERPT:])}) does not begin the answer as it shows it",
        "a template that shows a given answer behind the prompt for it",
        "set model.chat_template to one that does",
    )


def _given(
    template: Template, messages: list[Message], turn: int, tools: list[Any] | None
) -> str | None:
    """What a model is given before it writes a turn; None where a template cannot say it."""
    try:
        return template.render(messages[:turn], tools, prompt=True)
    except BadModel:
        if turn:
            raise
        return None


def _rendered(template: Template, text: str, spans: list[Span]) -> Rendered:
    close = not (spans and template.ends(text[slice(*spans[-1])]))
    return Rendered(text, tuple(spans), special=False, close=close)


def _checked(
    template: Template, parts: list[Rendered], messages: list[Message], tools: list[Any] | None
) -> list[Rendered]:
    """The renderings, if they show everything (see `check_shown`)."""

    def when_new(place: int) -> str:
        try:
            return _own_turn(template, messages[: place + 1], tools).text
        except BurnishError:
            return template.render(messages[: place + 1], tools)

    check_shown(template, [part.text for part in parts], messages, tools, when_new)
    return parts
