"""Loading a released model as a consumer does, and its limits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.contracts.errors import BadModel
from tasks.contracts.jobs import ModelJob
from tasks.evaluate.released_model import (
    load_language_model,
    positions_of,
    size_of,
    token_limit,
)
from tests.tasks.conftest import DEVICE


@pytest.fixture
def job(tiny_lm):
    """The job of scoring a merged model, with changes."""

    def job(**changes):
        settings = {"model": tiny_lm, "kind": "merged", "base": None, "quantization": "none"}
        settings |= {"tokenizer": None, "device": DEVICE}
        return ModelJob.model_validate(settings | changes)

    return job


class TestLoadLanguageModel:
    def test_a_merged_model_is_that_of_transformers_in_fp32(self, job, tiny_lm):
        own = AutoModelForCausalLM.from_pretrained(tiny_lm, dtype=torch.float32)
        found = load_language_model(job())
        assert {weight.dtype for weight in found.parameters()} == {torch.float32}
        ids = torch.tensor([[1, 2, 3]])
        assert torch.allclose(found.eval()(ids).logits, own.eval()(ids).logits, atol=1e-4)

    def test_one_that_is_damaged_names_the_model_and_the_fix(self, job, tmp_path, tiny_lm):
        (tmp_path / "config.json").write_bytes((tiny_lm / "config.json").read_bytes())
        (tmp_path / "model.safetensors").write_bytes(b"\0" * 64)
        with pytest.raises(BadModel) as caught:
            load_language_model(job(model=tmp_path))
        assert caught.value.where == "the model"
        assert "start the run again" in caught.value.fix


class TestLimits:
    def test_is_the_smallest_of_job_tokenizer_and_model(self, tiny_lm):
        config = AutoConfig.from_pretrained(tiny_lm)
        positions = config.max_position_embeddings
        unlimited = SimpleNamespace(model_max_length=10**30)
        assert token_limit(None, unlimited, config) == positions == positions_of(config)
        assert token_limit(7, unlimited, config) == 7
        assert token_limit(None, SimpleNamespace(model_max_length=5), config) == 5

    def test_size_counts_files_in_subfolders(self, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "b").write_bytes(b"12345")
        (tmp_path / "c").write_bytes(b"1")
        assert size_of(tmp_path) == 6
