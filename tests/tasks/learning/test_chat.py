"""What of an example is learnt: exactly the answers and their ends, whatever the chat template."""

import json
from itertools import groupby

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from tasks.errors import BadData, BadModel
from tasks.learning.chat import (
    CHATML,
    encode_example,
    encode_examples,
    encode_prompt,
    end_tokens,
    reference,
    training_tokenizer,
)

TURN = "<|im_start|>{{ m.role }}\n{{ c }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
EACH = "{% for m in messages %}{% set c = m.content %}"
FORGETFUL = (
    EACH + "{% if m.role == 'assistant' and not loop.last %}"
    "{% set c = m.content.split('</think>')[-1] | trim %}{% endif %}"
)
STRIPS_THINKING = FORGETFUL + TURN + PROMPT
MARKED = (
    FORGETFUL + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ c }}{% endgeneration %}{% else %}{{ c }}{% endif %}<|im_end|>\n{% endfor %}"
) + PROMPT
DROPS_SYSTEM = EACH.replace("messages", "messages if m.role != 'system'") + TURN + PROMPT
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('No system role here') }}{% endif %}"
    + EACH + TURN + PROMPT
)  # fmt: skip
CLOSES = EACH + TURN + "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}"
CLOSES += "<|endoftext|>{% endif %}"
NO_END = "{% for m in messages %}{{ m.role }}:\n{{ m.content }}\n{% endfor %}"
NO_END += "{% if add_generation_prompt %}assistant:\n{% endif %}"
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CALLS = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for t in m.tool_calls %}"
    "<tool_call>{{ t.function.name }}({{ t.function.arguments | tojson }})</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
) + PROMPT
ALL_MARKED = FORGETFUL.replace("{% for", "{% generation %}{% for", 1) + TURN + "{% endgeneration %}"
NONE_MARKED = STRIPS_THINKING + "{% if false %}{% generation %}{% endgeneration %}{% endif %}"

SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "What is 2 + 2?"}
SAY = {"role": "assistant", "content": "It is 4, naturally. 👍🏽"}
MORE = {"role": "user", "content": "And 3 + 3 ?"}
LAST = {"role": "assistant", "content": "6"}
TALK = [SYSTEM, ASK, SAY, MORE, LAST]
THOUGHT = [ASK, {"role": "assistant", "content": "<think>two twos</think>\n\nFour."}, MORE, LAST]
CALL = {
    "role": "assistant",
    "tool_calls": [
        {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "why": 'say "so"'}}}
    ],
}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]


@pytest.fixture(scope="module")
def shared(tiny_lm):
    return training_tokenizer(tiny_lm)


@pytest.fixture
def smol(shared, monkeypatch):
    """The tokenizer of a real chat model, with its own template; tests may change that."""
    monkeypatch.setattr(shared, "chat_template", shared.chat_template)
    return shared


@pytest.fixture
def chat(smol):
    """Encodes a conversation with a template; returns what is learnt, as text."""

    def encode(template, messages, tools=None):
        smol.chat_template = template or smol.chat_template
        example = {"messages": messages} | ({"tools": tools} if tools else {})
        return [learnt(smol, each) for each in encode_example(smol, example, "instruction")]

    return encode


@pytest.fixture(scope="module")
def llama(tiny_lm):
    """A tokenizer that puts a token before every text, as its template does."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    names = ["<|begin|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    tokenizer.add_special_tokens({"bos_token": names[0], "eos_token": names[1]})
    tokenizer.add_tokens(names[2:], special_tokens=True)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = LLAMA
    return tokenizer


def segments(tokenizer, encoded):
    """Runs of tokens that are learnt and that are not, as text."""
    found, place = [], 0
    for flag, run in groupby(encoded.learnt):
        count = len(list(run))
        found.append((flag, tokenizer.decode(encoded.ids[place : place + count])))
        place += count
    return found


def learnt(tokenizer, encoded):
    return [text for flag, text in segments(tokenizer, encoded) if flag]


class TestAConversation:
    def test_is_learnt_in_what_the_assistant_says_and_its_ends(self, smol):
        [encoded] = encode_example(smol, {"messages": TALK}, "instruction")
        assert segments(smol, encoded) == [
            (
                0,
                "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2 + 2?"
                "<|im_end|>\n<|im_start|>assistant\n",
            ),
            (1, "It is 4, naturally. 👍🏽<|im_end|>"),
            (0, "\n<|im_start|>user\nAnd 3 + 3 ?<|im_end|>\n<|im_start|>assistant\n"),
            (1, "6<|im_end|>"),
            (0, "\n"),
        ]

    def test_has_the_ids_of_apply_chat_template(self, smol):
        [encoded] = encode_example(smol, {"messages": TALK}, "instruction")
        assert encoded.ids == smol.apply_chat_template(TALK)["input_ids"]

    def test_is_encoded_alike_alone_and_among_others(self, smol):
        examples = [{"messages": TALK[:3]}, {"messages": TALK}, {"messages": [ASK, LAST]}]
        together = encode_examples(smol, examples, "instruction")
        assert together == [encode_example(smol, each, "instruction") for each in examples]

    def test_with_a_template_that_puts_an_end_behind_all(self, chat):
        assert chat(CLOSES, TALK) == [["It is 4, naturally. 👍🏽<|im_end|>", "6<|im_end|>"]]

    def test_with_a_template_without_ends_gets_the_end_token(self, chat, smol):
        assert chat(NO_END, TALK) == [["It is 4, naturally. 👍🏽", "6<|im_end|>"]]
        [encoded] = encode_example(smol, {"messages": TALK}, "instruction")
        assert encoded.ids[-1] == smol.eos_token_id

    def test_has_one_token_at_its_beginning(self, llama):
        """Never two, of the template and of the tokenizer."""
        [encoded] = encode_example(llama, {"messages": TALK}, "instruction")
        assert encoded.ids.count(llama.bos_token_id) == 1
        assert learnt(llama, encoded) == ["It is 4, naturally. 👍🏽<|eot_id|>", "6<|eot_id|>"]
        assert encoded.ids == llama.apply_chat_template(TALK)["input_ids"]

    def test_that_goes_on_after_the_last_answer_is_learnt_up_to_it(self, chat):
        assert chat(None, [*TALK[:4]]) == [["It is 4, naturally. 👍🏽<|im_end|>"]]

    def test_with_the_date_of_today_in_it_has_the_same_ids_tomorrow(self, chat, smol):
        chat("Today is {{ strftime_now('%d %b %Y') }}.\n" + CHATML, TALK)
        [encoded] = encode_example(smol, {"messages": TALK}, "instruction")
        assert smol.decode(encoded.ids).startswith("Today is 26 Jul 2024.")

    def test_that_the_assistant_begins_is_refused_if_that_is_all(self, chat):
        with pytest.raises(BadData, match="a conversation that the assistant begins"):
            chat(None, [SAY])

    def test_without_the_assistant_is_refused(self, chat):
        with pytest.raises(BadData, match=r"without the assistant \(roles: system, user\)"):
            chat(None, [SYSTEM, ASK])


class TestATemplateThatShowsEarlierTurnsOtherwise:
    def test_makes_an_example_of_each_turn(self, chat, smol):
        assert chat(STRIPS_THINKING, THOUGHT) == [
            ["<think>two twos</think>\n\nFour.<|im_end|>"],
            ["6<|im_end|>"],
        ]
        second = encode_example(smol, {"messages": THOUGHT}, "instruction")[1]
        assert "think" not in smol.decode(second.ids)

    def test_makes_one_where_it_does_not_matter(self, chat):
        assert len(chat(STRIPS_THINKING, TALK)) == 1

    def test_is_taken_at_its_marks(self, chat):
        assert chat(MARKED, THOUGHT) == [["Four.<|im_end|>", "6<|im_end|>"]]

    def test_is_not_taken_at_marks_that_mark_nothing(self, chat):
        """Else nothing at all would be learnt, and nobody would know."""
        assert len(chat(NONE_MARKED, THOUGHT)) == 2

    def test_is_refused_where_its_marks_mark_all(self, chat):
        with pytest.raises(BadModel, match="by which every token is the assistant's"):
            chat(ALL_MARKED, THOUGHT)

    def test_is_refused_where_the_prompt_does_not_begin_the_answer(self, chat):
        template = EACH + TURN + PROMPT.replace("{% endif", "<think>{% endif")
        with pytest.raises(BadModel, match="does not begin the answer"):
            chat(template, TALK)


class TestATemplateThatLeavesSomethingOut:
    def test_of_the_system_is_refused(self, chat):
        with pytest.raises(BadModel, match=r"does not show what the system says \('Be brief.'\)"):
            chat(DROPS_SYSTEM, TALK)
        assert chat(DROPS_SYSTEM, TALK[1:]) == chat(None, TALK[1:])

    def test_that_refuses_the_system_says_so(self, chat):
        with pytest.raises(BadModel, match=r"refuses the conversation.*No system role here"):
            chat(NO_SYSTEM, TALK)
        assert len(chat(NO_SYSTEM, TALK[1:])) == 1

    @pytest.mark.parametrize("content", [{}, {"content": ""}, {"content": None}])
    def test_of_a_tool_call_is_refused(self, chat, content):
        with pytest.raises(BadModel, match=r"does not show a tool call \('add'\)"):
            chat(None, [ASK, CALL | content])

    def test_of_the_tools_is_refused(self, chat):
        with pytest.raises(BadModel, match="the tools that the assistant may call"):
            chat(None, TALK, TOOLS)

    def test_is_not_meant_where_it_only_trims(self, chat):
        spaced = [{"role": "user", "content": "  two  \n"}, LAST]
        assert chat(EACH.replace("m.content", "m.content | trim") + TURN + PROMPT, spaced)


class TestAToolCall:
    expected = '<tool_call>add({"a": 2, "why": "say \\"so\\""})</tool_call><|im_end|>'

    def test_is_learnt(self, chat):
        assert chat(CALLS, [ASK, CALL], TOOLS) == [[self.expected]]

    def test_may_have_its_arguments_as_text(self, chat):
        [call] = CALL["tool_calls"]
        function = call["function"] | {"arguments": json.dumps(call["function"]["arguments"])}
        as_text = CALL | {"tool_calls": [call | {"function": function}]}
        assert chat(CALLS, [ASK, as_text], TOOLS) == [[self.expected]]

    def test_is_shown_with_its_answer_but_the_answer_not_learnt(self, chat):
        answer = {"role": "tool", "name": "add", "content": '{"sum": 4}'}
        assert chat(CALLS, [ASK, CALL, answer, SAY], TOOLS) == [
            [self.expected, "It is 4, naturally. 👍🏽<|im_end|>"]
        ]

    def test_is_a_reference_as_json(self):
        [call] = json.loads(reference({"messages": [ASK, CALL]}, "instruction"))
        assert call["name"] == "add"


class TestAText:
    def test_is_learnt_but_for_its_first_token(self, smol):
        [encoded] = encode_example(smol, {"text": "Once upon a time."}, "completion")
        assert segments(smol, encoded) == [(0, "Once"), (1, " upon a time.<|im_end|>")]

    def test_has_the_tokenizers_own_beginning(self, llama):
        [encoded] = encode_example(llama, {"text": "Once upon"}, "completion")
        assert segments(llama, encoded) == [(0, "<|begin|>"), (1, "Once upon<|eot_id|>")]

    def test_does_not_end_twice(self, smol):
        [encoded] = encode_example(smol, {"text": "Once.<|im_end|>"}, "completion")
        assert encoded.ids.count(smol.eos_token_id) == 1

    def test_of_nothing_is_refused(self, smol):
        with pytest.raises(BadData, match="nothing is learnt"):
            encode_example(smol, {"text": ""}, "completion")

    def test_is_its_own_reference(self):
        assert reference({"text": "Once."}, "completion") == "Once."


class TestACompletion:
    @pytest.mark.parametrize(
        ("prompt", "completion", "shown"),
        [
            ("Q: 2?\nA:", " two", " two<|im_end|>"),
            ("Q: 2?\nA: ", "two", " two<|im_end|>"),  # a token that straddles counts as learnt
            ("Q:\n", "two  \n\n  lines", "two  \n\n  lines<|im_end|>"),
            ("Q: 👍", "🏽 ja", None),
        ],
    )
    def test_is_learnt_and_its_prompt_is_not(self, smol, prompt, completion, shown):
        example = {"prompt": prompt, "completion": completion}
        [encoded] = encode_example(smol, example, "completion")
        assert encoded.ids == [*smol.encode(prompt + completion), smol.eos_token_id]
        text = "".join(learnt(smol, encoded))
        assert text == shown or (shown is None and text.endswith(completion[1:] + "<|im_end|>"))
        assert reference(example, "completion") == completion

    def test_of_nothing_is_refused(self, smol):
        with pytest.raises(BadData, match="nothing is learnt"):
            encode_example(smol, {"prompt": "Hello", "completion": ""}, "completion")


class TestAPreference:
    @pytest.fixture
    def example(self):
        return {"prompt": [SYSTEM, ASK], "chosen": [SAY], "rejected": [LAST]}

    def test_is_both_answers_to_one_prompt(self, smol, example):
        chosen, rejected = encode_example(smol, example, "preference")
        assert learnt(smol, chosen) == ["It is 4, naturally. 👍🏽<|im_end|>"]
        assert learnt(smol, rejected) == ["6<|im_end|>"]
        prompt = encode_prompt(smol, example, "preference")
        assert chosen.ids[: len(prompt)] == rejected.ids[: len(prompt)] == prompt
        assert reference(example, "preference") == SAY["content"]

    def test_is_learnt_in_the_last_turn_alone(self, smol):
        earlier = {"prompt": [ASK, SAY, MORE], "chosen": [LAST], "rejected": [SAY]}
        for each in encode_example(smol, earlier, "preference"):
            assert len(learnt(smol, each)) == 1

    def test_is_taken_at_marks(self, smol):
        smol.chat_template = MARKED
        pair = {"prompt": THOUGHT[:3], "chosen": [LAST], "rejected": [SAY]}
        chosen, _ = encode_example(smol, pair, "preference")
        assert learnt(smol, chosen) == ["6<|im_end|>"]


class TestThePrompt:
    @pytest.mark.parametrize(
        "template", [None, CHATML, STRIPS_THINKING, MARKED, CLOSES, NO_END, CALLS]
    )
    @pytest.mark.parametrize("messages", [TALK, TALK[1:], [ASK, SAY], THOUGHT])
    def test_is_where_the_last_answer_begins(self, smol, template, messages):
        smol.chat_template = template or smol.chat_template
        example = {"messages": messages}
        *_, last = encode_example(smol, example, "instruction")
        prompt = encode_prompt(smol, example, "instruction")
        assert last.ids[: len(prompt)] == prompt
        assert last.learnt[len(prompt)] == 1
        assert 1 in last.learnt[len(prompt) :]
        assert smol.decode(last.ids[len(prompt) :]).startswith(messages[-1]["content"])

    def test_of_a_completion_is_its_prompt(self, smol, llama):
        example = {"prompt": "Q: 2?\nA:", "completion": " two"}
        for tokenizer in (smol, llama):
            [encoded] = encode_example(tokenizer, example, "completion")
            prompt = encode_prompt(tokenizer, example, "completion")
            assert encoded.ids[: len(prompt)] == prompt
            assert encoded.learnt == [0] * len(prompt) + [1] * (len(encoded.ids) - len(prompt))

    def test_of_a_text_is_how_a_text_begins(self, smol, llama):
        assert encode_prompt(smol, {"text": "Once"}, "completion") == []
        assert encode_prompt(llama, {"text": "Once"}, "completion") == [llama.bos_token_id]


class TestThePadToken:
    """Where it is the end token, whoever masks the padding masks the end."""

    def test_is_never_the_end_token(self, tiny_lm, tmp_path):
        assert AutoTokenizer.from_pretrained(tiny_lm).pad_token == "<|im_end|>"
        tokenizer = training_tokenizer(tiny_lm)
        assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
        tokenizer.save_pretrained(tmp_path)
        assert training_tokenizer(tmp_path).pad_token == "<|endoftext|>"
        assert AutoTokenizer.from_pretrained(tmp_path).pad_token == "<|endoftext|>"

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"pad_token": None}, "<|endoftext|>"),
            ({"pad_token": "<|im_start|>"}, "<|im_start|>"),
            ({"unk_token": None}, None),
            ({"unk_token": "<|im_end|>"}, None),
            ({"extra": ["<|vision_pad|>", "<pad>"]}, "<pad>"),
            ({"chat_template": CLOSES}, None),  # there the unknown token is used otherwise
        ],
    )
    def test_is_one_that_is_not_used_otherwise(self, tiny_lm, tmp_path, changes, expected):
        tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
        tokenizer.add_tokens(changes.pop("extra", []), special_tokens=True)
        for name, value in changes.items():
            setattr(tokenizer, name, value)
        tokenizer.save_pretrained(tmp_path)
        assert training_tokenizer(tmp_path).pad_token == expected

    def test_does_not_end_a_turn_either(self, tiny_lm, tmp_path):
        tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
        tokenizer.eos_token, tokenizer.pad_token = "<repo_name>", "<|im_end|>"
        tokenizer.save_pretrained(tmp_path)
        assert training_tokenizer(tmp_path).pad_token == "<|endoftext|>"


class TestTheEnd:
    def test_is_that_of_tokenizer_template_and_model(self, smol, tiny_lm):
        assert end_tokens(smol) == [2]
        assert end_tokens(smol, {"eos_token_id": [2, 0]}) == [2, 0]
        other = AutoTokenizer.from_pretrained(tiny_lm)
        other.eos_token = "<|endoftext|>"
        assert end_tokens(other) == [0, 2]

    def test_may_have_no_part_in_the_template(self, smol):
        smol.chat_template = NO_END
        assert end_tokens(smol) == [2]

    def test_is_missed_where_there_is_none(self, tiny_lm, tmp_path):
        tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
        tokenizer.eos_token = None
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(BadModel, match="without an end token"):
            training_tokenizer(tmp_path)


class TestATokenizerWithoutATemplate:
    def test_is_refused_for_conversations_and_taken_for_texts(self, smol):
        smol.chat_template = None
        with pytest.raises(BadModel, match="without a chat template") as caught:
            encode_example(smol, {"messages": TALK}, "instruction")
        assert caught.value.where == "model.chat_template"
        assert encode_example(smol, {"text": "Once upon"}, "completion")

    def test_is_refused_if_it_is_no_jinja(self, smol):
        smol.chat_template = "{% for %}"
        with pytest.raises(BadModel, match="that is no Jinja"):
            encode_example(smol, {"messages": TALK}, "instruction")
