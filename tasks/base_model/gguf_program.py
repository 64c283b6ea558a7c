"""Converts a GGUF file to a model that can be trained.

Job: `ConvertGgufJob`. It writes safetensors, `config.json`, `generation_config.json` and the
tokenizer with its chat template to the folder `out`.

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
    """Convert the file; see the module docstring.

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
    with _memoized_gguf():
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
    """Check that the file is a complete language model that can be trained.

    Raises:
        BadModel: The file holds part of a model, a projector, an adapter or an encoder, or has an
            unknown architecture.
    """
    architecture = str(metadata["general.architecture"])
    parts = int(metadata.get("split.count", 1))
    if parts > 1 or len(files) > 1:
        raise BadModel(
            "model.uri",
            f"a GGUF file in {max(parts, len(files))} parts ({len(files)} of them here)",
            "one file",
            "join them: llama-gguf-split --merge FIRST_PART OUT.gguf, and name the result",
        )
    kind = str(metadata.get("general.type", "model"))
    if kind != "model" or architecture == "clip" or "mmproj" in files[0].name.lower():
        raise BadModel(
            "model.uri",
            f"a GGUF file that holds no language model ({kind}, {architecture})",
            "a language model",
            "name the file of the model itself, which is next to the projector or adapter",
        )
    if any(name in architecture for name in _ENCODERS):
        raise BadModel(
            "model.uri",
            f"a GGUF file of an encoder ({architecture})",
            "a language model that generates text",
            "to classify with an encoder, name its original model with safetensors",
        )
    supported = _supported_architectures()
    if architecture not in supported:
        raise BadModel(
            "model.uri",
            f"a GGUF file of architecture '{architecture}', which transformers cannot read",
            f"one of {', '.join(supported)}",
            "name the original model, with safetensors",
        )
    if "tokenizer.ggml.tokens" not in metadata or not tensors:
        raise BadModel(
            "model.uri",
            "a GGUF file without weights or without a tokenizer",
            "a complete model",
            "download it again, or name the original model with safetensors",
        )


def _supported_architectures() -> list[str]:
    from transformers.integrations.gguf import GGUF_ARCHS, GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    general = {"general", "tokenizer"}
    renamed = {name.replace("_", "-") for name in GGUF_SUPPORTED_ARCHITECTURES}
    renamed |= {name.replace("_", "") for name in GGUF_SUPPORTED_ARCHITECTURES}
    found = {*GGUF_SUPPORTED_ARCHITECTURES, *renamed, *(set(GGUF_ARCHS) & set(GGUF_CONFIG_ARCHS))}
    return sorted(found - general)


def _dtype(file: Path) -> str:
    """Return the dtype of the converted weights: float32 if all weights in the file are f32,
    otherwise bfloat16."""
    import torch
    from transformers.integrations.gguf import GgufHeader

    try:
        header = GgufHeader.from_file(str(file))
    except ValueError:
        # This reader does not know the quantization type; the gguf package may.
        return "bfloat16"
    end = header.data_start + max(tensor.offset + tensor.nbytes for tensor in header.tensors)
    size = file.stat().st_size
    if size < end:
        raise _unreadable(file, EOFError(f"{size:,} bytes of {end:,}"))
    return "float32" if header.dtype is torch.float32 else "bfloat16"


@contextlib.contextmanager
def _memoized_gguf() -> Iterator[None]:
    """Make transformers read the vocabulary once instead of three times, and build the table of
    tensor names once instead of once per module. Otherwise both take most of the conversion time.
    """
    import gguf

    names = ("GGUFReader", "get_tensor_name_map")
    originals = {name: getattr(gguf, name) for name in names}
    for name, function in originals.items():
        setattr(gguf, name, functools.cache(function))
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(gguf, name, function)


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
    except Exception as error:  # A damaged file can raise anything.
        if type(describe(error)) is not CodeFailed:
            raise  # Out of memory or disk space: not the file's fault.
        raise _unreadable(file, error) from error
    missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if missing:
        raise BadModel(
            "model.uri",
            f"a GGUF file without {len(missing)} of the model's tensors, such as {missing[0]}",
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
    """Write model and tokenizer, with the same special tokens in both."""
    from transformers import GenerationConfig

    from tasks.chat.stop_tokens import set_pad_token, stop_token_ids
    from tasks.models.adapter import save_merged
    from tasks.models.classifier import save_tokenizer

    if tokenizer.eos_token_id is not None:
        set_pad_token(tokenizer)
    stop_ids = stop_token_ids(tokenizer, model.generation_config)
    special = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for name, value in special.items():
        setattr(model.config, name, value)
    model.config.eos_token_id = tokenizer.eos_token_id
    # transformers records the model's name in the file as the path that it was loaded from.
    vars(model.config).pop("_model_name_or_path", None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.generation_config = GenerationConfig(
        eos_token_id=stop_ids if len(stop_ids) > 1 else (stop_ids or [None])[0], **special
    )
    save_merged(model, out)
    save_tokenizer(tokenizer, out)


def _unreadable(file: Path, error: BaseException) -> BadModel:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return BadModel(
        "model.uri",
        f"a GGUF file that cannot be read ({lines[0][:300]})",
        "a complete GGUF file of a language model",
        f"download {file.name} again, or name the original model with safetensors",
    )


if __name__ == "__main__":
    run(main, ConvertGgufJob)
