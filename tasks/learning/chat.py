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
when it is the last: just what a model is given when it serves.
"""

from __future__ import annotations

import functools
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.errors import BadData, BadModel
from tasks.learning.tokenizer import read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
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
_EXCERPT = 60


class Encoded(NamedTuple):
    """A sequence to train on.

    Attributes:
        ids: Token ids.
        learnt: For each, 1 where it is a target of the loss, else 0. The first is always 0, for
            nothing predicts it.
    """

    ids: list[int]
    learnt: list[int]


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
            return [_last_turn(self._template(example), way, example) for way in ways]
        return _all_turns(self._template(example), example["messages"], example)

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
        messages = _conversation(example, self._task)
        last = _assistant_turns(messages)[-1]
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
        learnt = _mask(found.offsets, rendered.spans, first, last)
        if rendered.special:
            learnt[last:] = [int(rendered.close)] * (len(ids) - last)
        elif rendered.close:
            cut = len(learnt) - learnt[::-1].index(1) if 1 in learnt else len(learnt)
            ids, learnt = ids[:cut], learnt[:cut]
        if rendered.close and (not ids or ids[-1] != self._end):
            ids, learnt = [*ids, self._end], [*learnt, 1]
        if learnt:
            learnt[0] = 0
        return Encoded(ids, learnt)


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
        check_learnt(group, task)
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
    what it says last in the chosen conversation. A tool call without words is given as JSON."""
    if task == "completion":
        return example["text"] if "text" in example else example["completion"]
    messages = _conversation(example, task)
    message = messages[_assistant_turns(messages)[-1]]
    calls = message.get("tool_calls")
    if calls and not _content(message).strip():
        return json.dumps([call.get("function", call) for call in calls], ensure_ascii=False)
    return _content(message)


def end_tokens(
    tokenizer: PreTrainedTokenizerBase, model_generation_config: Any = None
) -> list[int]:
    """Ids that end an answer.

    Args:
        tokenizer: The tokenizer that ships.
        model_generation_config: The model's, as an object or as plain values.

    Returns:
        The tokenizer's end token, the token that the chat template ends a turn with, and those of
        the generation configuration, each once, in this order.
    """
    found = [tokenizer.eos_token_id]
    if tokenizer.chat_template and (turn := template_of(tokenizer).end_of_turn):
        found.append(tokenizer.convert_tokens_to_ids(turn))
    settings = model_generation_config
    more = (
        settings.get("eos_token_id")
        if isinstance(settings, dict)
        else getattr(settings, "eos_token_id", None)
    )
    found += more if isinstance(more, list | tuple) else [more]
    return list(dict.fromkeys(token for token in found if isinstance(token, int)))


def training_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read a fast tokenizer for a language model, whose pad token never ends an answer.

    Where both are one token, whoever masks the padding by its id masks the end too, and the model
    never learns to stop. So a pad token that ends answers is replaced by a token that is meant for
    padding, else by the unknown token if nothing else uses it, else by none: batches carry masks,
    and nothing here is ever masked by its id.

    Raises:
        BadModel: The tokenizer cannot be read, is slow, or has no end token.
    """
    tokenizer = read_tokenizer(folder)
    if tokenizer.eos_token_id is None:
        raise no_end_token()
    settle_padding(tokenizer)
    return tokenizer


def settle_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer a pad token that ends no answer, or none (see `training_tokenizer`)."""
    ends = set(tokenizer.convert_ids_to_tokens(end_tokens(tokenizer)))
    if tokenizer.pad_token is not None and tokenizer.pad_token not in ends:
        return
    meant = sorted(
        (token for token in _special_tokens(tokenizer) if "pad" in token.lower()),
        key=lambda token: (len(token), token),
    )
    unknown = tokenizer.unk_token
    if unknown and not any(unknown in template for template in _templates(tokenizer)):
        meant.append(unknown)
    tokenizer.pad_token = next((token for token in meant if token not in ends), None)


def check_learnt(group: list[Encoded], task: str) -> None:
    """Refuse an example that would teach nothing, or what its reader says as well.

    Raises:
        BadData: No token of it is learnt.
        BadModel: Every token of a conversation is learnt.
    """
    if not all(any(each.learnt) for each in group):
        raise BadData(
            "data",
            "an example in which nothing is learnt",
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
    last = len(encoded.learnt) - encoded.learnt[::-1].index(1)
    return all(encoded.learnt[1:last])


def no_end_token() -> BadModel:
    """The error for a tokenizer that has none."""
    return BadModel(
        "model.uri",
        "a tokenizer without an end token",
        "an eos_token, so that the model learns where an answer ends",
        "set eos_token in its tokenizer_config.json to the token that ends a text or a turn",
    )


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
    learnt = [0] * len(offsets)
    for start, end in spans:
        low = bisect_right(offsets, start, first, last, key=lambda place: place[1])
        high = low
        while high < last and (offsets[high][0] < end or offsets[high] == (end, end)):
            high += 1
        learnt[low:high] = [1] * (high - low)
    return learnt


# Conversations


class Template:
    """A chat template, ready to render.

    Attributes:
        end_of_turn: The special token that it ends the assistant's turns with; empty if none.
        marked: Whether it marks what the assistant says with `{% generation %}`.
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
        self._tail, self.end_of_turn = self._find_end()

    def render(
        self, messages: list[Message], tools: list[Any] | None = None, *, prompt: bool = False
    ) -> str:
        """The conversation as text.

        Args:
            messages: In order.
            tools: That the assistant may call, as JSON schemas.
            prompt: Whether the prompt for an answer is put behind.

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
        behind = self._tail.find(self.end_of_turn) + len(self.end_of_turn)
        return len(text) - len(self._tail) + (behind or len(self._tail.rstrip()))

    def ends(self, text: str) -> bool:
        """Whether a turn ends with a special token."""
        return text.endswith(self._special)

    def _try(self, messages: list[Message], render: Any) -> Any:
        first: Exception | None = None
        for way in _ways(messages):
            try:
                return render(way)
            except Exception as error:  # a template may do anything
                first = first or error
        raise BadModel(
            "model.chat_template",
            f"a chat template that refuses the conversation ({_one_line(first)})",
            f"a template that takes the roles {', '.join(_roles(messages))} in this order",
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
        messages = [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": _PROBE},
        ]
        self._tail, self.end_of_turn = None, ""
        try:
            text = self.render(messages)
        except BadModel:
            return None, ""
        if _PROBE not in text:
            return None, ""
        tail = text[text.rindex(_PROBE) + len(_PROBE) :]
        places = [(tail.find(token), -len(token), token) for token in self._special]
        inside = [place for place in places if place[0] >= 0]
        return tail, min(inside)[2] if inside else ""


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
        return _template(text, variables, tuple(_special_tokens(tokenizer)))
    except Exception as error:
        if isinstance(error, BadModel):
            raise
        raise BadModel(
            "model.chat_template",
            f"a chat template that is no Jinja ({_one_line(error)})",
            "a template in Jinja",
            "correct it, or set model.chat_template",
        ) from error


def _all_turns(template: Template, messages: list[Message], example: Message) -> list[Rendered]:
    """Every turn of the assistant: in one rendering if that can be, else each in its own."""
    tools = example.get("tools")
    turns = _assistant_turns(messages)
    messages = messages[: turns[-1] + 1]  # nothing behind is learnt
    whole = template.render(messages, tools)
    spans = []
    for turn in turns:
        given = _given(template, messages, turn, tools)
        own = whole if turn == len(messages) - 1 else template.render(messages[: turn + 1], tools)
        own = own[: template.end_of(own)]
        if given is None or not own.startswith(given) or not whole.startswith(own):
            break
        spans.append((len(given), len(own)))
    else:
        return _checked(template, [_rendered(template, whole, spans)], messages, tools)
    if template.marked:
        text, marks = template.render_marked(messages, tools)
        said = "".join(text[slice(*mark)] for mark in marks)
        if said and _content(messages[-1]).strip() in said:
            return _checked(template, [_rendered(template, text, marks)], messages, tools)
    # The assistant's greeting answers nothing: where it cannot be told apart, it is only shown.
    own_turns = turns[1:] if turns[0] == 0 and len(turns) > 1 else turns
    parts = [_own_turn(template, messages[: turn + 1], tools) for turn in own_turns]
    return _checked(template, parts, messages, tools)


def _last_turn(template: Template, messages: list[Message], example: Message) -> Rendered:
    tools = example.get("tools")
    last = _assistant_turns(messages)[-1]
    part = _own_turn(template, messages[: last + 1], tools)
    [checked] = _checked(template, [part], messages[: last + 1], tools)
    return checked


def _own_turn(template: Template, messages: list[Message], tools: list[Any] | None) -> Rendered:
    """The last turn of a conversation, by itself."""
    text = template.render(messages, tools)
    given = _given(template, messages, len(messages) - 1, tools)
    end = template.end_of(text)
    if given is not None and text[:end].startswith(given):
        return _rendered(template, text, [(len(given), end)])
    if template.marked:
        text, marks = template.render_marked(messages, tools)
        if marks:
            return _rendered(template, text, marks[-1:])
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
        f"({_short(given[-_EXCERPT:])}) does not begin the answer as it shows it",
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


def _assistant_turns(messages: list[Message]) -> list[int]:
    turns = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise BadData(
            "data",
            f"a conversation without the assistant (roles: {', '.join(_roles(messages))})",
            "at least one turn of the assistant, to learn from",
            "leave it out, or name the roles as user and assistant",
        )
    return turns


def _conversation(example: dict[str, Any], task: str) -> list[Message]:
    return example["prompt"] + example["chosen"] if task == "preference" else example["messages"]


def _ways(messages: list[Message]) -> Iterator[list[Message]]:
    """Ways to write the same conversation: templates differ in what they take."""
    clean = [
        {name: value for name, value in message.items() if value is not None}
        for message in messages
    ]
    calls = any("tool_calls" in message for message in clean)
    yield [_with_calls(message, _as_object) for message in clean] if calls else clean
    if calls or not all("content" in message for message in clean):
        filled = [{"content": "", **message} for message in clean]
        yield [_with_calls(message, _as_object) for message in filled]
        yield [_with_calls(message, _as_text) for message in filled]


def _with_calls(message: Message, arguments: Any) -> Message:
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call.get("function", call)
        function = {**function, "arguments": arguments(function.get("arguments", {}))}
        calls.append({**call, "function": function} if "function" in call else function)
    return {**message, "tool_calls": calls}


def _as_object(arguments: Any) -> Any:
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


def _as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


# Whether a rendering shows everything


def _checked(
    template: Template, parts: list[Rendered], messages: list[Message], tools: list[Any] | None
) -> list[Rendered]:
    """The renderings, if they show each message, tool call and tool.

    Raises:
        BadModel: The template leaves something out.
    """
    texts = [part.text for part in parts]
    for place, message in enumerate(messages):
        content = _content(message)
        if not _shown(content, texts) and not (
            # Of earlier turns, templates leave out the thinking: it must be shown when it is new.
            message["role"] == "assistant"
            and _shown(content, [template.render(messages[: place + 1], tools)])
        ):
            raise _left_out(f"what the {message['role']} says ({_short(content)})")
        for call in message.get("tool_calls") or ():
            function = call.get("function", call)
            leaves = [function.get("name", ""), *_leaves(_as_object(function.get("arguments")))]
            without = {**message, "content": content, "tool_calls": None}
            if not all(_shown(leaf, texts) for leaf in leaves) or _same(
                template, messages[:place], (message, tools), (without, tools)
            ):
                raise _left_out(f"a tool call ({_short(str(function.get('name')))})")
    for tool in tools or ():
        name = tool.get("function", tool).get("name", "")
        ways = (messages[-1], tools), (messages[-1], None)
        if not _shown(name, texts) or _same(template, messages[:-1], *ways):
            raise _left_out(f"the tools that the assistant may call ({_short(name)})")
    return parts


def _same(template: Template, messages: list[Message], *ways: tuple[Message, Any]) -> bool:
    """Whether a conversation reads alike with another last message or other tools: a short name
    may be found in the text by chance."""
    try:
        return len({template.render([*messages, each], tools) for each, tools in ways}) == 1
    except BadModel:
        return False  # it minds what is missing


def _shown(content: str, texts: list[str]) -> bool:
    wanted = content.strip()
    if any(wanted in text for text in texts):
        return True
    # Quoted as JSON, or with other spaces.
    ways = {wanted, json.dumps(wanted)[1:-1], json.dumps(wanted, ensure_ascii=False)[1:-1]}
    dense = ["".join(text.split()) for text in texts]
    return any("".join(way.split()) in text for way in ways for text in dense)


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield json.dumps(value)


def _left_out(what: str) -> BadModel:
    return BadModel(
        "model.chat_template",
        f"a chat template that does not show {what}",
        "a template that shows every message, tool and tool call",
        "set model.chat_template to one that does, or take it out of the data",
    )


def _content(message: Message) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content if isinstance(part, dict))


def _roles(messages: list[Message]) -> list[str]:
    return [str(message.get("role")) for message in messages]


def _templates(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    template = tokenizer.chat_template or ""
    return list(template.values()) if isinstance(template, dict) else [template]


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    added = tokenizer.added_tokens_decoder.values()
    return list(
        dict.fromkeys(
            [token.content for token in added if token.special] + tokenizer.all_special_tokens
        )
    )


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}…")


def _one_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
