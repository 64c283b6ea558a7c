"""A tokenizer's chat template, ready to render conversations."""

from __future__ import annotations

import functools
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.chat.messages import Message, roles_of, ways
from tasks.chat.reasoning import split_thought, tags_known, tags_opened
from tasks.contracts.errors import BadModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""What `model.chat_template: chatml` means. It needs `<|im_start|>` and `<|im_end|>`."""

# Templates that write today's date (Llama 3.1 and later) would make other tokens every day. This
# is the date that they themselves write where they are given none.
_TODAY = datetime(2024, 7, 26)
_MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_PROBE = "Dsjq7Zt"

QUESTION = {"role": "user", "content": "Hello"}
"""A conversation that every chat template takes."""


_PROBED = [QUESTION, {"role": "assistant", "content": _PROBE}]


class Start(NamedTuple):
    """How a template begins an answer to a bare question.

    Attributes:
        prompt: What it writes behind the question, for a model to go on from.
        begun: What of that it does not write before a given answer: the prompt has begun it.
        lead: What it writes before a given answer, and not into the prompt.
        thinks: Whether the prompt ends with an opening tag, so that what follows is a thought.
    """

    prompt: str
    begun: str
    lead: str
    thinks: bool


class Template:
    """A chat template, ready to render.

    Attributes:
        end_of_turn: The special token that it ends the assistant's turns with; empty if none.
        ending: What it writes behind the assistant's words, up to and with that token; empty if
            there is none.
        marked: Whether it marks what the assistant says with `{% generation %}`.
        may_think: Whether it minds `enable_thinking`.
        start: How it begins an answer; None where that is uncertain.
        tags: Between which it takes a thought to stand; None where it knows of none.
    """

    def __init__(self, text: str, variables: dict[str, Any], special_tokens: list[str]) -> None:
        # Not apply_chat_template: that copies and checks all messages anew on each of the many
        # renderings, and writes today's date.
        from transformers.utils import chat_template_utils as utils

        self._compiled = utils._compile_jinja_template(text)
        self._render_with_marks = utils._render_with_assistant_indices
        self._variables = {**variables, "strftime_now": _TODAY.strftime}
        self._special = tuple(sorted(special_tokens, key=len, reverse=True))
        self.marked = bool(_MARKS.search(text))
        self.may_think = "enable_thinking" in text
        self._tail, self.end_of_turn = self._find_end()
        self.ending = (self._tail or "")[: self._end_in_tail()]
        self.start = self._find_start()
        thinks = self.start is not None and self.start.thinks
        self.tags = tags_opened(self.start.prompt) if thinks else tags_known(text)

    def render(
        self,
        messages: list[Message],
        tools: list[Any] | None = None,
        *,
        prompt: bool = False,
        thinking: bool = True,
    ) -> str:
        """The conversation as text.

        Args:
            messages: In order.
            tools: That the assistant may call, as JSON schemas.
            prompt: Whether the prompt for an answer is put behind.
            thinking: False turns thinking off, where the template minds `enable_thinking`; else it
                does what it does by default.

        Raises:
            BadModel: The template refuses it.
        """
        return self._try(
            messages,
            lambda way: self._compiled.render(
                messages=way,
                tools=tools or None,
                documents=None,
                add_generation_prompt=prompt,
                **self._variables,
                **({} if thinking else {"enable_thinking": False}),
            ),
        )

    def render_marked(
        self, messages: list[Message], tools: list[Any] | None
    ) -> tuple[str, list[Span]]:
        """The conversation as text, and what the template marks as the assistant's."""
        text, spans = self._try(
            messages,
            lambda way: self._render_with_marks(
                self._compiled, way, tools or None, None, False, **self._variables
            ),
        )
        return text, [self._with_end(text, span) for span in spans]

    def end_of(self, text: str) -> int:
        """Where the last turn of a rendering ends: behind its end token, or its last word."""
        if self._tail is None or not text.endswith(self._tail):
            return len(text.rstrip())
        return len(text) - len(self._tail) + (self._end_in_tail() or len(self._tail.rstrip()))

    def spoken(self, text: str, *, written: bool) -> str:
        """What an answer says behind its thought; see `tasks.chat.encoder.spoken`."""
        begun = written and self.start is not None and self.start.thinks
        _, said = split_thought(text, self.tags, begun=begun)
        return text if said == text else said.strip()

    def ends(self, text: str) -> bool:
        """Whether a turn ends with a special token."""
        return text.endswith(self._special)

    def _try(self, messages: list[Message], render: Any) -> Any:
        first: Exception | None = None
        for way in ways(messages):
            try:
                return render(way)
            except Exception as error:  # a template may do anything
                first = first or error
        raise BadModel(
            "model.chat_template",
            f"a chat template that refuses the conversation ({_one_line(first)})",
            f"a template that takes the roles {', '.join(roles_of(messages))} in this order",
            "set model.chat_template to one that does, or change the conversations",
        ) from first

    def _with_end(self, text: str, span: Span) -> Span:
        start, end = span
        if not self.ends(text[start:end].rstrip()) and self.end_of_turn:
            end += len(self.end_of_turn) * text.startswith(self.end_of_turn, end)
        return start, start + len(text[start:end].rstrip()) if end > start else end

    def _find_end(self) -> tuple[str | None, str]:
        """What the template writes behind the assistant's words, and the first special token in
        it."""
        self._tail, self.end_of_turn = None, ""
        try:
            text = self.render(_PROBED)
        except BadModel:
            return None, ""
        if _PROBE not in text:
            return None, ""
        tail = text[text.rindex(_PROBE) + len(_PROBE) :]
        places = [(tail.find(token), -len(token), token) for token in self._special]
        inside = [place for place in places if place[0] >= 0]
        return tail, min(inside)[2] if inside else ""

    def _end_in_tail(self) -> int:
        """Where the end token ends in what is written behind the assistant's words."""
        if not self.end_of_turn:
            return 0
        return (self._tail or "").find(self.end_of_turn) + len(self.end_of_turn)

    def _find_start(self) -> Start | None:
        try:
            text, prompt = self.render(_PROBED), self.render([QUESTION], prompt=True)
        except BadModel:
            return None
        alike = _common(text, prompt)
        lead, found, _ = text[alike:].partition(_PROBE)
        begun = prompt[alike:]
        if (
            not found
            or QUESTION["content"] not in prompt[:alike]
            or (begun.strip() and lead.strip())
        ):
            return None
        behind = prompt[prompt.rindex(QUESTION["content"]) + len(QUESTION["content"]) :]
        tags = tags_opened(behind)
        thinks = tags is not None and (
            tags.opening in begun or lead.lstrip().startswith(tags.closing)
        )
        return Start(behind, begun, lead, thinks)


@functools.lru_cache(maxsize=16)
def _template(text: str, variables: tuple, special_tokens: tuple[str, ...]) -> Template:
    return Template(text, dict(variables), list(special_tokens))


def template_of(tokenizer: PreTrainedTokenizerBase, with_tools: bool = False) -> Template:
    """A tokenizer's chat template.

    Args:
        tokenizer: The tokenizer.
        with_tools: Choose its template for tools, where it has one of its own for them.

    Raises:
        BadModel: It has none, or one that is no Jinja.
    """
    if not tokenizer.chat_template:
        raise BadModel(
            "model.chat_template",
            "a tokenizer without a chat template",
            "a template that turns a conversation into text",
            "choose the chat ('instruct') version of the model, or set model.chat_template to "
            "chatml or to a template in Jinja",
        )
    text = tokenizer.chat_template
    if isinstance(text, dict):
        text = text.get("tool_use" if with_tools else "default") or next(iter(text.values()))
    variables = tuple(
        (name, value)
        for name, value in tokenizer.special_tokens_map.items()
        if isinstance(value, str)
    )
    try:
        return _template(text, variables, tuple(special_tokens_of(tokenizer)))
    except Exception as error:
        if isinstance(error, BadModel):
            raise
        raise BadModel(
            "model.chat_template",
            f"a chat template that is no Jinja ({_one_line(error)})",
            "a template in Jinja",
            "correct it, or set model.chat_template",
        ) from error


def _common(one: str, other: str) -> int:
    """How many characters two texts begin alike with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def template_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The sources of all its chat templates."""
    template = tokenizer.chat_template or ""
    return list(template.values()) if isinstance(template, dict) else [template]


def special_tokens_of(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Its special tokens, each once."""
    added = tokenizer.added_tokens_decoder.values()
    return list(
        dict.fromkeys(
            [token.content for token in added if token.special] + tokenizer.all_special_tokens
        )
    )


def _one_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
