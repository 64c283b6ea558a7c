"""Tokenizers of chat models, and the target texts of their examples."""

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from tasks.chat.encoder import encode_example
from tasks.chat.stop_tokens import training_tokenizer
from tests.tasks.chat.conversations import LLAMA, target_texts


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
    """Encodes a conversation with a template; returns the target texts of each sequence."""

    def encode(template, messages, tools=None):
        smol.chat_template = template or smol.chat_template
        example = {"messages": messages} | ({"tools": tools} if tools else {})
        return [target_texts(smol, each) for each in encode_example(smol, example, "instruction")]

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
