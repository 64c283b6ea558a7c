"""Converts a GGUF file to a model that can be trained.

Job: `ConvertGgufJob`. Its folder `out` gets safetensors, `config.json`, `generation_config.json`
and the tokenizer with its chat template.

Quantized and f16 weights become bf16. A quantized weight has at most 8 significant bits, which bf16
holds; an f16 file was usually converted from a model published in bf16; and f16 overflows in
training, so 16-bit weights are bf16 everywhere in Burnish.
"""

from __future__ import annotations

import contextlib
import functools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.contracts.errors import BadModel, CodeFailed, describe
from tasks.contracts.jobs import ConvertGgufJob, ConvertGgufResult
from tasks.runtime.program import Reporter, run

_ENCODERS = ("bert", "t5", "clip", "modern-bert")


def main(job: ConvertGgufJob, reporter: Reporter) -> ConvertGgufResult:
    """See the module's description.

    Raises:
        BadModel: The file is damaged, holds part of a model or no trainable language model, or has
            an architecture that transformers cannot read from GGUF.
    """
    files = sorted(job.files)
    metadata, tensors = read_header(files[0])
    check_header(files, metadata, tensors)
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    dtype = _dtype(files[0])
    with _read_once():
        model = _model(files[0], dtype)
        tokenizer = _tokenizer(files[0])
    _save(model, tokenizer, job.out)
    return ConvertGgufResult(architecture=type(model).__name__, dtype=dtype)


def read_header(file: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a GGUF file's metadata (long lists of strings as their length) and its tensors' names.

    Raises:
        BadModel: The file is not GGUF, or is damaged.
    """
    from transformers.integrations.gguf import read_gguf_metadata

    try:
        return read_gguf_metadata(str(file))
    except (ValueError, struct.error, UnicodeDecodeError, OSError) as error:
        raise _unreadable(file, error) from error


def check_header(files: list[Path], metadata: dict[str, Any], tensors: tuple[str, ...]) -> None:
    """Refuse everything but a whole, trainable language model.

    Raises:
        BadModel: The file holds part of a model, a projector, an adapter or an encoder, or has an
            unknown architecture.
    """
    architecture = str(metadata["general.architecture"])
    parts = int(metadata.get("split.count", 1))
    if parts > 1 or len(files) > 1:
        raise _refusal(
            f"a GGUF file in {max(parts, len(files))} parts ({len(files)} of them here)",
            "one file",
            "join them: llama-gguf-split --merge FIRST_PART OUT.gguf, and name the result",
        )
    kind = str(metadata.get("general.type", "model"))
    if kind != "model" or architecture == "clip" or "mmproj" in files[0].name.lower():
        raise _refusal(
            f"a GGUF file that holds no language model ({kind}, {architecture})",
            "a language model",
            "name the file of the model itself, which is next to the projector or adapter",
        )
    if any(name in architecture for name in _ENCODERS):
        raise _refusal(
            f"a GGUF file of an encoder ({architecture})",
            "a language model that generates text",
            "to classify with an encoder, name its original model with safetensors",
        )
    known = _known_architectures()
    if architecture not in known:
        raise _refusal(
            f"a GGUF file of architecture '{architecture}', which transformers cannot read",
            f"one of {', '.join(known)}",
            "name the original model, with safetensors",
        )
    if "tokenizer.ggml.tokens" not in metadata or not tensors:
        raise _refusal(
            "a GGUF file without weights or without a tokenizer",
            "a whole model",
            "download it again, or name the original model with safetensors",
        )


def _known_architectures() -> list[str]:
    from transformers.integrations.gguf import GGUF_ARCHS, GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    general = {"general", "tokenizer"}
    renamed = {name.replace("_", "-") for name in GGUF_SUPPORTED_ARCHITECTURES}
    renamed |= {name.replace("_", "") for name in GGUF_SUPPORTED_ARCHITECTURES}
    found = {*GGUF_SUPPORTED_ARCHITECTURES, *renamed, *(set(GGUF_ARCHS) & set(GGUF_CONFIG_ARCHS))}
    return sorted(found - general)


def _dtype(file: Path) -> str:
    """Return the dtype of the converted weights: bfloat16, unless all of the file's are f32."""
    import torch
    from transformers.integrations.gguf import GgufHeader

    try:
        header = GgufHeader.from_file(str(file))
    except ValueError:
        # A quantization type that this reader does not know; the package gguf may.
        return "bfloat16"
    end = header.data_start + max(tensor.offset + tensor.nbytes for tensor in header.tensors)
    size = file.stat().st_size
    if size < end:
        raise _unreadable(file, EOFError(f"{size:,} bytes of {end:,}"))
    return "float32" if header.dtype is torch.float32 else "bfloat16"


@contextlib.contextmanager
def _read_once() -> Iterator[None]:
    """Make transformers read the vocabulary once instead of three times, and build the table of
    tensor names once instead of once per module. Both took most of the conversion time."""
    import gguf

    names = ("GGUFReader", "get_tensor_name_map")
    own = {name: getattr(gguf, name) for name in names}
    for name, call in own.items():
        setattr(gguf, name, functools.cache(call))
    try:
        yield
    finally:
        for name, call in own.items():
            setattr(gguf, name, call)


def _model(file: Path, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM, GgufConfig

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:  # Anything may be missing from a damaged file.
        if type(describe(error)) is not CodeFailed:
            raise  # Out of memory or disk space: not the file's fault.
        raise _unreadable(file, error) from error
    lost = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if lost:
        raise _refusal(
            f"a GGUF file without {len(lost)} of the model's tensors, such as {lost[0]}",
            f"all weights of a {type(model).__name__}",
            "name the original model, with safetensors",
        )
    return model


def _tokenizer(file: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, trust_remote_code=False
        )
    except Exception as error:  # As above.
        raise _unreadable(file, error) from error


def _save(model: Any, tokenizer: Any, out: Path) -> None:
    """Write the folder; model and tokenizer get the same special tokens."""
    from transformers import GenerationConfig

    from tasks.chat.stop_tokens import set_pad_token, stop_token_ids
    from tasks.models.adapter import save_merged
    from tasks.models.classifier import save_tokenizer

    if tokenizer.eos_token_id is not None:
        set_pad_token(tokenizer)
    ends = stop_token_ids(tokenizer, model.generation_config)
    special = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for name, value in special.items():
        setattr(model.config, name, value)
    model.config.eos_token_id = tokenizer.eos_token_id
    # transformers takes the model's name in the file for the path that it was loaded from.
    vars(model.config).pop("_model_name_or_path", None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.generation_config = GenerationConfig(
        eos_token_id=ends if len(ends) > 1 else (ends or [None])[0], **special
    )
    save_merged(model, out)
    save_tokenizer(tokenizer, out)


def _unreadable(file: Path, error: BaseException) -> BadModel:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return _refusal(
        f"a GGUF file that cannot be read ({lines[0][:300]})",
        "a whole GGUF file of a language model",
        f"download {file.name} again, or name the original model with safetensors",
    )


def _refusal(found: str, expected: str, fix: str) -> BadModel:
    return BadModel("model.uri", found, expected, fix)


if __name__ == "__main__":
    run(main, ConvertGgufJob)
