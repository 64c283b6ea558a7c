"""The targets of an example are exactly its answers and their ends."""

import pytest
from tokenizers.processors import TemplateProcessing

from tasks.chat.encoder import encode_example, encode_prompt, reference_answer
from tasks.chat.stop_tokens import training_tokenizer
from tasks.chat.template import CHATML
from tasks.contracts.errors import BadData
from tests.tasks.chat.conversations import (
    ASK,
    CALLS,
    CLOSES,
    LAST,
    MARKED,
    MORE,
    NO_END,
    REASONED,
    SAY,
    STRIPS_THINKING,
    SYSTEM,
    TALK,
    masked_runs,
    target_texts,
)
from tests.tasks.language_samples import metaspace_tokenizer


class TestText:
    def test_every_token_but_the_first_is_a_target(self, smol):
        [encoded] = encode_example(smol, {"text": "Once upon a time."}, "completion")
        assert masked_runs(smol, encoded) == [(0, "Once"), (1, " upon a time.<|im_end|>")]

    def test_begins_with_the_tokens_that_the_tokenizer_adds(self, llama):
        [encoded] = encode_example(llama, {"text": "Once upon"}, "completion")
        assert masked_runs(llama, encoded) == [(0, "<|begin|>"), (1, "Once upon<|eot_id|>")]

    def test_an_end_token_in_the_text_is_not_repeated(self, smol):
        [encoded] = encode_example(smol, {"text": "Once.<|im_end|>"}, "completion")
        assert encoded.ids.count(smol.eos_token_id) == 1

    def test_without_tokens_is_refused(self, smol):
        with pytest.raises(BadData, match="without target tokens"):
            encode_example(smol, {"text": ""}, "completion")

    def test_the_reference_is_the_text(self):
        assert reference_answer({"text": "Once."}, "completion") == "Once."


class TestCompletion:
    @pytest.mark.parametrize(
        ("prompt", "completion"),
        [
            ("Q: 2?\nA:", " two"),
            ("Q: 2?\nA: ", "two"),
            ("Q:\n", "two  \n\n  lines"),
            ("Q:\n\n", "two"),
            ("Q: 👍", "🏽 ja"),
        ],
    )
    def test_only_the_completion_is_a_target_and_follows_the_prompt_as_served(
        self, smol, prompt, completion
    ):
        example = {"prompt": prompt, "completion": completion}
        [encoded] = encode_example(smol, example, "completion")
        served = encode_prompt(smol, example, "completion")
        assert encoded.ids[: len(served)] == served == smol.encode(prompt)
        assert encoded.as_served
        assert target_texts(smol, encoded) == [completion + "<|im_end|>"]
        assert smol.decode(encoded.ids) == prompt + completion + "<|im_end|>"
        assert reference_answer(example, "completion") == completion

    def test_without_tokens_is_refused(self, smol):
        with pytest.raises(BadData, match="without target tokens"):
            encode_example(smol, {"prompt": "Hello", "completion": ""}, "completion")


class TestServedPrompt:
    """An answer follows the tokens that its prompt has alone (trl#6105)."""

    TEMPLATE = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )

    def test_of_a_template_that_ends_with_a_space(self, smol):
        smol.chat_template = self.TEMPLATE
        example = {"messages": [ASK, SAY]}
        [encoded] = encode_example(smol, example, "instruction")
        served = encode_prompt(smol, example, "instruction")
        assert encoded.ids[: len(served)] == served
        assert encoded.as_served

    def test_of_every_turn_has_its_own_tokens(self, smol):
        smol.chat_template = self.TEMPLATE
        [encoded] = encode_example(smol, {"messages": TALK}, "instruction")
        space = smol.encode(" ")[0]
        starts = [n for n, now in enumerate(encoded.loss_mask) if now > encoded.loss_mask[n - 1]]
        assert len(starts) == 2
        assert [encoded.ids[start - 1] for start in starts] == [space, space]

    @pytest.mark.parametrize("legacy", [False, True])
    def test_of_a_tokenizer_that_writes_a_space_before_every_text(self, legacy):
        """It takes an answer alone for the beginning of a text."""
        tokenizer = metaspace_tokenizer("always" if legacy else "first")
        example = {"prompt": "red car\n", "completion": "red"}
        [encoded] = encode_example(tokenizer, example, "completion")
        joined = tokenizer.decode(tokenizer.encode("red car\nred"))
        assert tokenizer.decode(encoded.ids[:-1]) == joined
        served = encode_prompt(tokenizer, example, "completion")
        assert encoded.as_served == (encoded.ids[: len(served)] == served) == (not legacy)


class TestPreference:
    @pytest.fixture
    def example(self):
        return {"prompt": [SYSTEM, ASK], "chosen": [SAY], "rejected": [LAST]}

    def test_both_answers_follow_the_same_prompt(self, smol, example):
        chosen, rejected = encode_example(smol, example, "preference")
        assert target_texts(smol, chosen) == ["It is 4, naturally. 👍🏽<|im_end|>"]
        assert target_texts(smol, rejected) == ["6<|im_end|>"]
        prompt = encode_prompt(smol, example, "preference")
        assert chosen.ids[: len(prompt)] == rejected.ids[: len(prompt)] == prompt
        assert reference_answer(example, "preference") == SAY["content"]

    def test_only_the_last_turn_is_a_target(self, smol):
        earlier = {"prompt": [ASK, SAY, MORE], "chosen": [LAST], "rejected": [SAY]}
        for each in encode_example(smol, earlier, "preference"):
            assert len(target_texts(smol, each)) == 1

    def test_generation_marks_are_used(self, smol):
        smol.chat_template = MARKED
        pair = {"prompt": REASONED[:3], "chosen": [LAST], "rejected": [SAY]}
        chosen, _ = encode_example(smol, pair, "preference")
        assert target_texts(smol, chosen) == ["6<|im_end|>"]


class TestServingPrompt:
    @pytest.mark.parametrize(
        "template", [None, CHATML, STRIPS_THINKING, MARKED, CLOSES, NO_END, CALLS]
    )
    @pytest.mark.parametrize("messages", [TALK, TALK[1:], [ASK, SAY], REASONED])
    def test_ends_where_the_last_answer_begins(self, smol, template, messages):
        smol.chat_template = template or smol.chat_template
        example = {"messages": messages}
        *_, last = encode_example(smol, example, "instruction")
        prompt = encode_prompt(smol, example, "instruction")
        assert last.ids[: len(prompt)] == prompt
        assert last.loss_mask[len(prompt)] == 1
        assert 1 in last.loss_mask[len(prompt) :]
        assert smol.decode(last.ids[len(prompt) :]).startswith(messages[-1]["content"])

    def test_of_a_completion_is_its_prompt(self, smol, llama):
        example = {"prompt": "Q: 2?\nA:", "completion": " two"}
        for tokenizer in (smol, llama):
            [encoded] = encode_example(tokenizer, example, "completion")
            prompt = encode_prompt(tokenizer, example, "completion")
            assert encoded.ids[: len(prompt)] == prompt
            assert encoded.loss_mask == [0] * len(prompt) + [1] * (len(encoded.ids) - len(prompt))

    def test_of_a_text_is_what_the_tokenizer_adds_before_it(self, smol, llama):
        assert encode_prompt(smol, {"text": "Once"}, "completion") == []
        assert encode_prompt(llama, {"text": "Once"}, "completion") == [llama.bos_token_id]


class TestBeginToken:
    """Of a tokenizer that puts a begin token before every text."""

    @pytest.fixture
    def tokenizer(self, tiny_lm):
        tokenizer = training_tokenizer(tiny_lm)
        begin = ("<|im_start|>", tokenizer.convert_tokens_to_ids("<|im_start|>"))
        tokenizer.bos_token = begin[0]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{begin[0]} $A", special_tokens=[begin]
        )
        return tokenizer

    @pytest.mark.parametrize(
        "example",
        [
            {"text": "<|im_start|>user\nHi<|im_end|>"},
            {"prompt": "<|im_start|>Hi", "completion": " there"},
        ],
    )
    def test_of_the_text_is_not_doubled(self, tokenizer, example):
        begin = tokenizer.bos_token_id
        [found] = encode_example(tokenizer, example, "completion")
        assert found.ids[0] == begin != found.ids[1]
        assert len(found.ids) == len(found.loss_mask) and found.loss_mask[0] == 0
        if "prompt" in example:
            prompt = encode_prompt(tokenizer, example, "completion")
            assert prompt == found.ids[: len(prompt)]

    def test_is_added_to_a_text_without_one(self, tokenizer):
        [found] = encode_example(tokenizer, {"text": "Hi there"}, "completion")
        assert found.ids[0] == tokenizer.bos_token_id != found.ids[1]
