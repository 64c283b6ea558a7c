"""An answer written behind the prompt for it, where the chat template would not write it so.

Some templates never show an answer behind what a model is given to write it: they put the system's
message only into a last turn that is the user's, they take the thought out of every answer, or
their prompt has begun the thought already. What the model is to learn is none the less certain:
what it is given when it serves, then the answer, then the end of the turn. So both are joined:

- as the template writes this answer behind a bare question, where it writes it whole there;
- else its words as they are. What the prompt has begun of them is not written again. A thought
  beside the content is written between the template's tags.

Where the prompt has opened a thought, and the answer holds none, the thought is closed at once.
Without that the model would learn to answer within its thoughts, and whoever looks for the answer
behind them would find nothing. It is closed as the template itself closes it, for an answer without
a thought or with `enable_thinking` off, where that goes on from the same prompt. What is learnt
then is not to think; where that is not wanted, the data must hold thoughts.

A prompt that opens a thought mostly ends with a line break, and templates write the end of an empty
thought on the next line but one. Tokenizers make one token of two line breaks, which is not how the
prompt ends: what follows that would never be learnt. So the second one is left out.
"""

from __future__ import annotations

from typing import Any

from tasks.chat.coverage import is_shown
from tasks.chat.messages import Message
from tasks.chat.reasoning import Tags, split_thought, thought_and_said, thought_of
from tasks.chat.template import QUESTION, Template
from tasks.contracts.errors import BadData, BadModel


def goes_on(template: Template, given: str, text: str, message: Message) -> bool:
    """Whether a rendering begins with the prompt for its last answer, and goes on with it all."""
    answer = text[len(given) :]
    return (
        text.startswith(given)
        and _tells(template, message, answer)
        and _without_space(template, given, answer) == answer
    )


def _tells(template: Template, message: Message, text: str) -> bool:
    """Whether a rendering holds what the assistant thinks and says."""
    return all(is_shown(part, [text]) for part in thought_and_said(message, template.tags))


def answer_behind(
    template: Template, given: str, messages: list[Message], tools: list[Any] | None
) -> str | None:
    """The text of the last message, an answer, as it goes on from the prompt for it.

    Args:
        template: The chat template.
        given: The prompt for the answer.
        messages: The conversation up to the answer.
        tools: That the assistant may call.

    Returns:
        With the end of the turn, if the template has a token for it. None where it is uncertain:
        the prompt ends otherwise than that of a bare question, the template does not show what is
        said, it would have to write tool calls, or the prompt begins an answer that is another.

    Raises:
        BadData: The answer is a thought alone.
    """
    start = template.start
    if start is None or not given.endswith(start.prompt):
        return None
    message = messages[-1]
    bare = _behind_question(template, message, tools)
    if bare is not None:
        return _without_space(template, given, bare)
    if message.get("tool_calls") or not isinstance(message.get("content"), str):
        return None
    _, said = thought_and_said(message, template.tags)
    if not is_shown(said, [template.render(messages, tools)]):
        return None
    words = _words(template, given, messages, tools)
    return None if words is None else _without_space(template, given, words) + template.ending


def _behind_question(template: Template, message: Message, tools: list[Any] | None) -> str | None:
    """As the template writes it behind a bare question; None where it leaves out a part of it."""
    try:
        prompt = template.render([QUESTION], tools, prompt=True)
        text = template.render([QUESTION, message], tools)
    except BadModel:
        return None
    answer = text[len(prompt) : template.end_of(text)]
    return answer if text.startswith(prompt) and _tells(template, message, answer) else None


def _without_space(template: Template, given: str, answer: str) -> str:
    """An answer less the space that would become one token with the space before it."""
    thinks = template.start is not None and template.start.thinks
    return answer.lstrip() if thinks and given[-1:].isspace() else answer


def _words(
    template: Template, given: str, messages: list[Message], tools: list[Any] | None
) -> str | None:
    """The answer's own words, less what the prompt has begun of them."""
    message, start, tags = messages[-1], template.start, template.tags
    content, beside = message["content"], thought_of(message)
    if tags is None and beside:
        return None
    if tags and beside:
        thought, said = thought_and_said(message, tags)
        content = f"{tags.opening}\n{thought}\n{tags.closing}\n\n{said.lstrip()}"
    elif tags and start.thinks:
        thought, said = split_thought(content, tags)
        if thought and not said.strip():
            raise _only_thought(tags)
        if said == content:
            return _no_thought(template, tags, given, messages, tools) + content.lstrip()
    begun = tags.opening if tags and start.thinks else start.begun.strip()
    if not begun:
        if tags and tags.opening in start.lead:
            return None
        return start.lead + (content.lstrip() if start.begun else content)
    rest = content.lstrip()
    if rest.startswith(begun):
        rest = rest[len(begun) :]
    elif not (tags and start.thinks):
        return None
    return rest.lstrip() if given[-1:].isspace() else rest


def _no_thought(
    template: Template,
    tags: Tags,
    given: str,
    messages: list[Message],
    tools: list[Any] | None,
) -> str:
    """The end of a thought that the prompt has begun: nothing is thought."""
    if template.may_think:
        off = template.render(messages[:-1], tools, prompt=True, thinking=False)
        if off.startswith(given) and tags.closing in off[len(given) :]:
            return off[len(given) :]
    return f"{'' if given[-1:].isspace() else chr(10)}{tags.closing}\n\n"


def _only_thought(tags: Tags) -> BadData:
    return BadData(
        "data",
        "an answer that is a thought alone",
        f"what is said, behind the {tags.closing} that ends the thought",
        "end the thought and add the answer, or leave the conversation out",
    )
