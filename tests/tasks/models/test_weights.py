"""Precision and device of a model's weights."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification

from tasks.models.weights import (
    disable_base_dropout,
    keep_4bit_trainable,
    local_device,
    nf4_config,
    stored_dtype,
)


class TestStoredDtype:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_is_that_of_the_largest_tensor(self, tmp_path, dtype):
        small = torch.float32 if dtype != torch.float32 else torch.bfloat16
        save_file({"norm": torch.zeros(2, dtype=small)}, tmp_path / "a.safetensors")
        save_file({"weight": torch.zeros(9, dtype=dtype)}, tmp_path / "b.safetensors")
        assert stored_dtype(tmp_path) == dtype

    def test_of_other_types_is_fp32(self, tmp_path):
        save_file({"ids": torch.zeros(9, dtype=torch.int64)}, tmp_path / "a.safetensors")
        assert stored_dtype(tmp_path) == torch.float32


class TestDropout:
    def test_is_off_in_the_base_and_on_in_the_head(self):
        config = BertConfig(
            vocab_size=9,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            hidden_dropout_prob=0.3,
            attention_probs_dropout_prob=0.3,
            classifier_dropout=0.2,
        )
        model = BertForSequenceClassification(config)
        disable_base_dropout(model)
        assert model.dropout.p == 0.2
        base = [each.p for each in model.bert.modules() if isinstance(each, torch.nn.Dropout)]
        assert base and set(base) == {0.0}


class TestFourBit:
    def test_is_nf4_with_double_quantization_outside_the_head(self):
        config = nf4_config("auto", ["head", "classifier"])
        assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("nf4", True)
        assert config.bnb_4bit_compute_dtype == torch.float32
        assert config.llm_int8_skip_modules == ["classifier", "head"]
        assert nf4_config(torch.bfloat16, []).bnb_4bit_compute_dtype == torch.bfloat16

    def test_layers_are_not_repacked(self):
        layer = torch.nn.Linear(2, 2)
        layer.support_avx512bf16_for_cpu = True
        keep_4bit_trainable(torch.nn.Sequential(layer))
        assert layer.support_avx512bf16_for_cpu is False


class TestLocalDevice:
    def test_is_a_gpu_of_its_own_for_each_process(self, monkeypatch):
        assert local_device("cuda") == "cuda"
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert (local_device("cuda"), local_device("cpu")) == ("cuda:1", "cpu")
