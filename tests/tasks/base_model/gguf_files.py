"""GGUF files of a tiny model, for tests."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

TOKENS = ("<eos>", "a", "b", "c", "d", "e", "f", "ab")


def write_gguf(
    path: Path,
    architecture: str = "llama",
    kind: type = np.float32,
    tokens: tuple[str, ...] = TOKENS,
    **settings,
) -> Path:
    """Write a GGUF file of a Llama with 1 layer and hidden size 32, and return its path.

    Args:
        path: The file to write.
        architecture: Its `general.architecture`.
        kind: NumPy type of the matrices.
        tokens: The vocabulary; the first token ends an answer.
        **settings: More metadata; `__` in a name stands for a dot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    for name, value in settings.items():
        key = name.replace("__", ".")
        writer.add_uint16(key, value) if isinstance(value, int) else writer.add_string(key, value)
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,)}
    block = {"attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32)}
    block |= {"attn_v": (16, 32), "attn_output": (32, 32), "ffn_gate": (64, 32)}
    block |= {"ffn_up": (64, 32), "ffn_down": (32, 64)}
    shapes |= {f"blk.0.{name}": shape for name, shape in block.items()}
    rng = np.random.default_rng(3)
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32 if len(shape) == 1 else kind)
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
