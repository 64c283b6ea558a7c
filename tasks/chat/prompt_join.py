"""Join prompt and answer when the chat template does not render the answer after its prompt.

Some templates never render an answer after the prompt that a model is given at serving time: they
put the system message only into a last user turn, they remove the reasoning from every answer, or
their generation prompt already opens the reasoning. The training target is still well defined: the
serving prompt, then the answer, then the end of the turn. So both are joined:

- as the template renders this answer to a bare question, if that rendering is complete;
- otherwise with the answer's own words. What the prompt already contains of them is not repeated.
  `reasoning_content` is written between the template's tags.

If the prompt opens the reasoning and the answer has none, the reasoning is closed at once. Without
this the model would learn to answer inside its reasoning, and a reader who looks after the
reasoning would find nothing. It is closed as the template itself closes it, for an answer without
reasoning or with `enable_thinking` off, if that continues the same prompt. This teaches the model
to skip reasoning; to avoid that, the data must contain reasoning.

A prompt that opens the reasoning usually ends with a line break, and templates write the closing
tag of an empty reasoning two lines further down. Tokenizers merge two line breaks into one token,
which is not how the prompt ends, so what follows would never be trained as it is served. The second
line break is therefore left out.
"""

from __future__ import annotations

from typing import Any

from tasks.chat.coverage import contains_text
from tasks.chat.messages import Message
from tasks.chat.reasoning import (
    ReasoningTags,
    reasoning_and_answer,
    reasoning_content,
    split_reasoning,
)
from tasks.chat.template import QUESTION, Template
from tasks.contracts.errors import BadData, BadModel


def continues_prompt(template: Template, prompt: str, text: str, message: Message) -> bool:
    """Whether a rendering is the prompt for its last message followed by the whole message."""
    answer = text[len(prompt) :]
    return (
        text.startswith(prompt)
        and _is_complete(template, message, answer)
        and _without_leading_space(template, prompt, answer) == answer
    )


def _is_complete(template: Template, message: Message, text: str) -> bool:
    """Whether a rendering contains the message's reasoning and answer."""
    return all(contains_text(part, [text]) for part in reasoning_and_answer(message, template.tags))


def join_answer(
    template: Template, prompt: str, messages: list[Message], tools: list[Any] | None
) -> str | None:
    """The last message, an answer, as the continuation of its prompt.

    Args:
        template: The chat template.
        prompt: The prompt for the answer.
        messages: The conversation up to and including the answer.
        tools: The tools that the assistant may call, as JSON schemas.

    Returns:
        The text with the end of the turn, if the template has a token for it. None if the text is
        uncertain: the prompt ends differently from that of a bare question, the template does not
        render the answer, it would have to render tool calls, or the prompt begins another answer.

    Raises:
        BadData: The message is reasoning without an answer.
    """
    start = template.answer_start
    if start is None or not prompt.endswith(start.prompt):
        return None
    message = messages[-1]
    bare = _answer_to_question(template, message, tools)
    if bare is not None:
        return _without_leading_space(template, prompt, bare)
    if message.get("tool_calls") or not isinstance(message.get("content"), str):
        return None
    _, answer = reasoning_and_answer(message, template.tags)
    if not contains_text(answer, [template.render(messages, tools)]):
        return None
    words = _own_words(template, prompt, messages, tools)
    if words is None:
        return None
    return _without_leading_space(template, prompt, words) + template.turn_suffix


def _answer_to_question(
    template: Template, message: Message, tools: list[Any] | None
) -> str | None:
    """The answer as the template renders it after a bare question; None if incomplete there."""
    try:
        prompt = template.render([QUESTION], tools, prompt=True)
        text = template.render([QUESTION, message], tools)
    except BadModel:
        return None
    answer = text[len(prompt) : template.end_of_last_turn(text)]
    return answer if text.startswith(prompt) and _is_complete(template, message, answer) else None


def _without_leading_space(template: Template, prompt: str, answer: str) -> str:
    """The answer without the whitespace that would merge into one token with the prompt's end."""
    reasons = template.answer_start is not None and template.answer_start.opens_reasoning
    return answer.lstrip() if reasons and prompt[-1:].isspace() else answer


def _own_words(
    template: Template, prompt: str, messages: list[Message], tools: list[Any] | None
) -> str | None:
    """The answer's own words, without those that the prompt already contains."""
    message, start, tags = messages[-1], template.answer_start, template.tags
    content, separate = message["content"], reasoning_content(message)
    if tags is None and separate:
        return None
    if tags and separate:
        reasoning, answer = reasoning_and_answer(message, tags)
        content = f"{tags.opening}\n{reasoning}\n{tags.closing}\n\n{answer.lstrip()}"
    elif tags and start.opens_reasoning:
        reasoning, answer = split_reasoning(content, tags)
        if reasoning and not answer.strip():
            raise _only_reasoning(tags)
        if answer == content:
            return _empty_reasoning(template, tags, prompt, messages, tools) + content.lstrip()
    begun = tags.opening if tags and start.opens_reasoning else start.only_in_prompt.strip()
    if not begun:
        if tags and tags.opening in start.only_before_answer:
            return None
        return start.only_before_answer + (content.lstrip() if start.only_in_prompt else content)
    rest = content.lstrip()
    if rest.startswith(begun):
        rest = rest[len(begun) :]
    elif not (tags and start.opens_reasoning):
        return None
    return rest.lstrip() if prompt[-1:].isspace() else rest


def _empty_reasoning(
    template: Template,
    tags: ReasoningTags,
    prompt: str,
    messages: list[Message],
    tools: list[Any] | None,
) -> str:
    """The text that closes the reasoning that the prompt has opened."""
    if template.has_thinking_switch:
        off = template.render(messages[:-1], tools, prompt=True, thinking=False)
        if off.startswith(prompt) and tags.closing in off[len(prompt) :]:
            return off[len(prompt) :]
    return f"{'' if prompt[-1:].isspace() else chr(10)}{tags.closing}\n\n"


def _only_reasoning(tags: ReasoningTags) -> BadData:
    return BadData(
        "data",
        "an assistant turn with reasoning but no answer",
        f"an answer after the {tags.closing} that ends the reasoning",
        "close the reasoning and add the answer, or leave the conversation out",
    )
