"""Generated answers are greedy, whatever the batch, and end with a stop token."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from tasks.chat.stop_tokens import stop_token_ids, training_tokenizer
from tasks.evaluate.generation import Generator

TOKENS = 24
PROMPTS = [[*range(5, 7 + number % 3), 40 + number] for number in range(9)]


@pytest.fixture
def model(sharpened):
    return AutoModelForCausalLM.from_pretrained(sharpened, dtype=torch.float32).eval()


@pytest.fixture
def stop_ids(sharpened, model):
    return stop_token_ids(training_tokenizer(sharpened), model.generation_config)


def by_transformers(model, prompt, stop_ids):
    """The answer that `generate` of transformers gives to one prompt."""
    ids = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=TOKENS,
        do_sample=False,
        eos_token_id=stop_ids,
        pad_token_id=0,
    )[0, len(prompt) :].tolist()
    return ids[:-1] if ids[-1] in stop_ids else ids


class TestGenerate:
    @pytest.mark.parametrize("batch_size", [1, 4, 100])
    def test_equals_transformers_greedy_search_in_the_order_of_the_prompts(
        self, model, stop_ids, batch_size
    ):
        answers = Generator(model, stop_ids, 0).generate(PROMPTS, TOKENS, batch_size)
        expected = [by_transformers(model, prompt, stop_ids) for prompt in PROMPTS]
        assert [answer.ids for answer in answers] == expected
        # Some end early, so rows leave the batch before others.
        assert len({len(ids) for ids in expected}) > 2

    def test_a_stop_token_is_computed_but_not_part_of_the_answer(self, model, stop_ids):
        for answer in Generator(model, stop_ids, 0).generate(PROMPTS, TOKENS, 4):
            stopped = len(answer.ids) < TOKENS
            assert answer.steps == len(answer.ids) + stopped
            assert not set(answer.ids) & set(stop_ids)

    def test_reports_finished_prompts_after_each_batch(self, model, stop_ids):
        seen = []
        Generator(model, stop_ids, 0).generate(PROMPTS, 2, 4, seen.append)
        assert seen == [4, 8, 9]

    def test_batches_shrink_to_the_memory_for_their_cache(self, model, stop_ids, monkeypatch):
        monkeypatch.setattr("tasks.evaluate.generation.CACHE_BYTES", 1)
        seen = []
        Generator(model, stop_ids, 0).generate(PROMPTS[:3], 2, 100, seen.append)
        assert seen == [1, 2, 3]
