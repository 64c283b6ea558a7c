"""Render conversations with a tokenizer's chat template, and find out how the template works."""

from __future__ import annotations

import functools
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.chat.messages import Message, message_variants, roles_of
from tasks.chat.reasoning import split_reasoning, tags_handled_by, tags_opened_by
from tasks.contracts.errors import BadModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The template for `model.chat_template: chatml`. It needs `<|im_start|>` and `<|im_end|>`."""

# Templates that write today's date (Llama 3.1 and later) would give other tokens every day. This
# is the date that they write themselves if they are given none.
_FIXED_DATE = datetime(2024, 7, 26)
_GENERATION_MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_PROBE = "Dsjq7Zt"

QUESTION = {"role": "user", "content": "Hello"}
"""A message that every chat template accepts."""


_PROBE_MESSAGES = [QUESTION, {"role": "assistant", "content": _PROBE}]


class AnswerStart(NamedTuple):
    """How a template begins an answer to a bare question.

    Attributes:
        prompt: What it renders after the question as the generation prompt.
        only_in_prompt: The part of the prompt that it does not render before a given answer.
        only_before_answer: What it renders before a given answer, but not in the prompt.
        opens_reasoning: Whether the prompt ends with an opening tag, so that a model continues
            with its reasoning.
    """

    prompt: str
    only_in_prompt: str
    only_before_answer: str
    opens_reasoning: bool


class Template:
    """A compiled chat template.

    Attributes:
        end_of_turn_token: The special token that ends an assistant turn; empty if there is none.
        turn_suffix: What follows the content of an assistant turn, up to and including that
            token; empty if there is none.
        has_generation_marks: Whether it marks assistant turns with `{% generation %}`.
        has_thinking_switch: Whether it reads `enable_thinking`.
        answer_start: How it begins an answer; None if that is uncertain.
        tags: The reasoning tags that it handles; None if there are none.
    """

    def __init__(self, text: str, variables: dict[str, Any], special_tokens: list[str]) -> None:
        # Not apply_chat_template: it copies and checks all messages on each of the many
        # renderings, and writes today's date.
        from transformers.utils import chat_template_utils as utils

        self._compiled = utils._compile_jinja_template(text)
        self._render_with_marks = utils._render_with_assistant_indices
        self._variables = {**variables, "strftime_now": _FIXED_DATE.strftime}
        self._special = tuple(sorted(special_tokens, key=len, reverse=True))
        self.has_generation_marks = bool(_GENERATION_MARK.search(text))
        self.has_thinking_switch = "enable_thinking" in text
        self._tail, self.end_of_turn_token = self._find_end()
        self.turn_suffix = (self._tail or "")[: self._token_end_in_tail()]
        self.answer_start = self._find_answer_start()
        reasons = self.answer_start is not None and self.answer_start.opens_reasoning
        self.tags = tags_opened_by(self.answer_start.prompt) if reasons else tags_handled_by(text)

    def render(
        self,
        messages: list[Message],
        tools: list[Any] | None = None,
        *,
        prompt: bool = False,
        thinking: bool = True,
    ) -> str:
        """Render a conversation as text.

        Args:
            messages: The messages, in order.
            tools: The tools that the assistant may call, as JSON schemas.
            prompt: Whether to append the generation prompt.
            thinking: False passes `enable_thinking=False`; True leaves the template's default.

        Raises:
            BadModel: The template refuses the conversation.
        """
        return self._try_variants(
            messages,
            lambda variant: self._compiled.render(
                messages=variant,
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
        """Render a conversation, and return the spans that the template marks as generation."""
        text, spans = self._try_variants(
            messages,
            lambda variant: self._render_with_marks(
                self._compiled, variant, tools or None, None, False, **self._variables
            ),
        )
        return text, [self._with_end(text, span) for span in spans]

    def end_of_last_turn(self, text: str) -> int:
        """The index in a rendering after the end token of its last turn, or after its last word."""
        if self._tail is None or not text.endswith(self._tail):
            return len(text.rstrip())
        return len(text) - len(self._tail) + (self._token_end_in_tail() or len(self._tail.rstrip()))

    def strip_reasoning(self, text: str, *, generated: bool) -> str:
        """The answer without its reasoning; see `tasks.chat.encoder.strip_reasoning`."""
        start = self.answer_start
        in_reasoning = generated and start is not None and start.opens_reasoning
        _, answer = split_reasoning(text, self.tags, in_reasoning=in_reasoning)
        return text if answer == text else answer.strip()

    def ends_with_special_token(self, text: str) -> bool:
        """Whether a text ends with one of the tokenizer's special tokens."""
        return text.endswith(self._special)

    def _try_variants(self, messages: list[Message], render: Any) -> Any:
        """The first rendering of an equivalent form of the messages that succeeds."""
        first: Exception | None = None
        for variant in message_variants(messages):
            try:
                return render(variant)
            except Exception as error:  # A template may raise anything.
                first = first or error
        raise BadModel(
            "model.chat_template",
            f"a chat template that refuses the conversation ({_one_line(first)})",
            f"a template that accepts the roles {', '.join(roles_of(messages))} in this order",
            "set model.chat_template to one that does, or change the conversations",
        ) from first

    def _with_end(self, text: str, span: Span) -> Span:
        """A marked span, extended by the end token and without trailing whitespace."""
        start, end = span
        stripped = text[start:end].rstrip()
        if not self.ends_with_special_token(stripped) and self.end_of_turn_token:
            token = self.end_of_turn_token
            end += len(token) * text.startswith(token, end)
        return start, start + len(text[start:end].rstrip()) if end > start else end

    def _find_end(self) -> tuple[str | None, str]:
        """What follows the content of a last assistant turn, and the first special token in it."""
        self._tail, self.end_of_turn_token = None, ""
        try:
            text = self.render(_PROBE_MESSAGES)
        except BadModel:
            return None, ""
        if _PROBE not in text:
            return None, ""
        tail = text[text.rindex(_PROBE) + len(_PROBE) :]
        found = [(tail.find(token), -len(token), token) for token in self._special]
        inside = [each for each in found if each[0] >= 0]
        return tail, min(inside)[2] if inside else ""

    def _token_end_in_tail(self) -> int:
        """The index after the end token in what follows the content of an assistant turn."""
        if not self.end_of_turn_token:
            return 0
        return (self._tail or "").find(self.end_of_turn_token) + len(self.end_of_turn_token)

    def _find_answer_start(self) -> AnswerStart | None:
        try:
            text, prompt = self.render(_PROBE_MESSAGES), self.render([QUESTION], prompt=True)
        except BadModel:
            return None
        shared = _common_prefix(text, prompt)
        only_before_answer, found, _ = text[shared:].partition(_PROBE)
        only_in_prompt = prompt[shared:]
        if (
            not found
            or QUESTION["content"] not in prompt[:shared]
            or (only_in_prompt.strip() and only_before_answer.strip())
        ):
            return None
        after = prompt[prompt.rindex(QUESTION["content"]) + len(QUESTION["content"]) :]
        tags = tags_opened_by(after)
        opens_reasoning = tags is not None and (
            tags.opening in only_in_prompt or only_before_answer.lstrip().startswith(tags.closing)
        )
        return AnswerStart(after, only_in_prompt, only_before_answer, opens_reasoning)


@functools.lru_cache(maxsize=16)
def _template(text: str, variables: tuple, special_tokens: tuple[str, ...]) -> Template:
    return Template(text, dict(variables), list(special_tokens))


def template_of(tokenizer: PreTrainedTokenizerBase, with_tools: bool = False) -> Template:
    """The chat template of a tokenizer.

    Args:
        tokenizer: The tokenizer.
        with_tools: Whether to choose its template for tools, if it has a separate one.

    Raises:
        BadModel: It has no template, or one that is not valid Jinja.
    """
    if not tokenizer.chat_template:
        raise BadModel(
            "model.chat_template",
            "a tokenizer without a chat template",
            "a template that renders a conversation as text",
            "choose the chat ('instruct') version of the model, or set model.chat_template to "
            "chatml or to a Jinja template",
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
            f"a chat template that is not valid Jinja ({_one_line(error)})",
            "a Jinja template",
            "correct it, or set model.chat_template",
        ) from error


def _common_prefix(one: str, other: str) -> int:
    """The length of the common prefix of two texts."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def template_sources(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The sources of all chat templates of a tokenizer."""
    template = tokenizer.chat_template or ""
    return list(template.values()) if isinstance(template, dict) else [template]


def special_tokens_of(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens of a tokenizer, without duplicates."""
    added = tokenizer.added_tokens_decoder.values()
    return list(
        dict.fromkeys(
            [token.content for token in added if token.special] + tokenizer.all_special_tokens
        )
    )


def _one_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
