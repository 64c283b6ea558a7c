"""The same random model and the same examples for all who train in `language_training`.

Tokens are drawn from a long-tailed distribution, so that there is something to learn; lengths are
log-normal. Every contender gets the token ids themselves, so that no tokenizer decides anything.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

PAD, END = 0, 1
"""Token ids; no example holds a pad token, so real tokens can be counted."""
SHARD = "0" * 64


@dataclass(frozen=True)
class Shape:
    """What is trained, on what.

    Attributes:
        hidden, layers, heads, kv_heads, intermediate, vocabulary: Of a Llama.
        precision: `fp32` or `bf16`: of the weights and of the forward and backward pass.
        examples: For training; `validation`: to compare losses.
        tokens: In all training examples; 0 for what is drawn.
        median: Of their lengths, in tokens.
        sigma: Of the logarithm of the lengths.
        longest: Tokens in an example, at most.
        batch: Examples an optimizer step.
        rank: Of the adapter on all linear layers.
        tied: Whether the output embedding is the input embedding.
        quantization: `none` or `nf4`.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    precision: str
    examples: int
    tokens: int = 0
    validation: int = 16
    median: int = 177
    sigma: float = 0.95
    longest: int = 1024
    batch: int = 8
    rank: int = 16
    tied: bool = True
    quantization: str = "none"


SHAPES = {
    "tiny": Shape(256, 4, 4, 4, 688, 8192, "fp32", 160, tokens=41_291),
    # SmolLM2-135M's.
    "smollm2": Shape(576, 30, 9, 3, 1536, 49_152, "bf16", 48),
    # To see whether the benchmark itself works.
    "smoke": Shape(32, 2, 4, 2, 64, 256, "fp32", 24, validation=4, median=24, longest=96),
    # Llama 3.1 8B's, in 4 bits.
    "llama-8b": Shape(
        *(4096, 32, 32, 8, 14_336, 128_256),
        precision="bf16",
        examples=256,
        median=500,
        longest=2048,
        batch=16,
        tied=False,
        quantization="nf4",
    ),
}


@dataclass(frozen=True)
class Examples:
    """Token ids, and 1 where a token is a target of the loss, one behind the other.

    Attributes:
        ids: int32; loss_mask: uint8, of the same length.
        starts: int64: where each example begins, and the end.
    """

    ids: np.ndarray
    loss_mask: np.ndarray
    starts: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each example."""
        return np.diff(self.starts)

    def save(self, file: Path) -> None:
        """Write them for `peers.common.read_examples`."""
        np.savez(file, ids=self.ids, loss_mask=self.loss_mask, starts=self.starts)


def draw_lengths(shape: Shape, count: int, total: int, draw: np.random.Generator) -> np.ndarray:
    """Log-normal lengths of a given sum.

    Args:
        shape: Gives median, spread and bounds.
        count: How many.
        total: Their sum; 0 for what is drawn.
        draw: Randomness.

    Returns:
        int64, between 8 and `shape.longest`.
    """
    raw = np.exp(draw.normal(np.log(shape.median), shape.sigma, count))
    lengths = np.clip(raw.astype(np.int64), 8, shape.longest)
    # One token more or less in examples drawn one after the other, until the sum is right.
    while total and (missing := total - int(lengths.sum())):
        one = int(draw.integers(count))
        lengths[one] = np.clip(lengths[one] + np.sign(missing), 8, shape.longest)
    return lengths


def draw_examples(shape: Shape, count: int, total: int, target_share: float, seed: int) -> Examples:
    """Examples of random tokens whose n-th most frequent comes with a probability of about 1 / n.

    Args:
        shape: Gives vocabulary and lengths.
        count: How many examples.
        total: Their tokens; 0 for what is drawn.
        target_share: Share of the tokens that are targets: 1 for all, less for the turns of a
            conversation.
        seed: Of all that is random.
    """
    draw = np.random.default_rng([seed, count])
    lengths = draw_lengths(shape, count, total, draw)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    # The same words are frequent in all splits.
    words = np.random.default_rng(seed).permutation(np.arange(2, shape.vocabulary))
    chance = 1 / np.arange(1, len(words) + 1)
    ids = words[draw.choice(len(words), int(starts[-1]), p=chance / chance.sum())]
    ids[starts[1:] - 1] = END
    mask = np.concatenate([turns(int(length), target_share) for length in lengths])
    return Examples(ids.astype(np.int32), mask, starts)


def turns(length: int, target_share: float) -> np.ndarray:
    """Which tokens of an example are targets: the end of each of its turns of 128 tokens.

    The first token never is, for nothing predicts it.
    """
    mask = (np.arange(length) % 128) >= (1 - target_share) * min(128, length)
    mask[0] = False
    return mask.astype(np.uint8)


def save_model(shape: Shape, folder: Path, seed: int = 11) -> None:
    """Write a random model, and a tokenizer that has a word for each of its token ids."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=2 * shape.longest,
        tie_word_embeddings=shape.tied,
        pad_token_id=PAD,
        bos_token_id=END,
        eos_token_id=END,
    )
    torch.manual_seed(seed)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[shape.precision]
    # Billions of weights are drawn in minutes on a CPU, in seconds on a GPU.
    large = shape.hidden >= 4096 and torch.cuda.is_available()
    with torch.device("cuda" if large else "cpu"):
        torch.set_default_dtype(dtype)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.generation_config = GenerationConfig(pad_token_id=PAD, eos_token_id=END)
    model.save_pretrained(folder)
    words = {"<pad>": PAD, "<end>": END}
    words |= {f"w{number}": number for number in range(2, shape.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        bos_token="<end>",
        unk_token="<end>",
        model_max_length=2 * shape.longest,
    ).save_pretrained(folder)


def save_tokens(train: Examples, validation: Examples, folder: Path) -> None:
    """Write both splits as the step `tokenize` does, and `keep.npz` as `load` does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    both = [(part, row) for part in (train, validation) for row in range(len(part.lengths))]
    spans = [(part, slice(part.starts[row], part.starts[row + 1])) for part, row in both]
    draw = np.random.default_rng(3)
    count = len(spans)
    table = pa.table(
        {
            "row": pa.array(range(count), pa.uint32()),
            "side": pa.array(np.zeros(count, np.uint8)),
            "hash_hi": pa.array(draw.integers(0, 2**64, count, dtype=np.uint64)),
            "hash_lo": pa.array(draw.integers(0, 2**64, count, dtype=np.uint64)),
            "input_ids": pa.array([part.ids[span] for part, span in spans], pa.list_(pa.int32())),
            "loss_mask": pa.array(
                [part.loss_mask[span] for part, span in spans], pa.list_(pa.uint8())
            ),
            "length": pa.array([span.stop - span.start for _, span in spans], pa.int32()),
            "truncated": pa.array([False] * count),
        }
    )
    pq.write_table(table, folder / "tokens.parquet")
    splits = [1] * len(train.lengths) + [2] * len(validation.lengths)
    np.savez(folder / "keep.npz", **{SHARD: np.array(splits, np.uint8)})


def prepare(
    shape: Shape, folder: Path, target_share: float = 1.0, seed: int = 20_261
) -> dict[str, Any]:
    """Write model and examples, for all who train.

    Args:
        shape: Of both.
        folder: For them; a model that lies there is taken.
        target_share: Share of tokens that are targets.
        seed: Of the examples.

    Returns:
        The specification that `peers` and `ours_training` read, but for each one's own options.
    """
    base = folder / "base"
    if not (base / "config.json").is_file():
        save_model(shape, base)
    data = folder / f"data-{target_share:g}"
    data.mkdir(parents=True, exist_ok=True)
    train = draw_examples(shape, shape.examples, shape.tokens, target_share, seed)
    validation = draw_examples(shape, shape.validation, 0, target_share, seed)
    train.save(data / "train.npz")
    validation.save(data / "validation.npz")
    save_tokens(train, validation, data)
    (data / "shape.json").write_text(json.dumps(asdict(shape)))
    return {
        "base": str(base),
        "train": str(data / "train.npz"),
        "validation": str(data / "validation.npz"),
        "tokens": str(data / "tokens.parquet"),
        "keep": str(data / "keep.npz"),
        "shard": SHARD,
        "pad": PAD,
        "device": "cpu",
        "longest": shape.longest,
        "batch": shape.batch,
        "precision": shape.precision,
        "quantization": shape.quantization,
        "rank": shape.rank,
        "alpha": 2 * shape.rank,
        "learning_rate": 5e-4,
        "weight_decay": 0.01,
        "epochs": 1,
        "seed": 17,
        "examples": shape.examples,
        "train_tokens": int(train.starts[-1]),
        "target_tokens": int(train.loss_mask.sum()),
        "validation_tokens": int(validation.starts[-1]),
        "median_length": float(np.median(train.lengths)),
        "longest_example": int(train.lengths.max()),
    }
