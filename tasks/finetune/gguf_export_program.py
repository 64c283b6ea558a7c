"""Writes a model as one GGUF file, for llama.cpp and Ollama, with llama.cpp's own converter.

Job: `converter` (its script; see `tasks.runtime.gguf_converter`), `type` (`f32`, `f16`, `bf16` or
`q8_0`),
`work` (a folder to work in), and `model` (folder with configuration, tokenizer and safetensors)
and `out` (folder): there it writes `model-<type>.gguf`, and a `Modelfile` for Ollama beside it.
Or, to learn before training whether the converter knows a model, `base` (folder) and `tokenizer`
(folder) in place of the last two: then only the vocabulary is converted, and nothing is kept.
Result: `file` and `bytes`, or nothing after such a trial.

The same model gives the same bytes. What is scored is the model in safetensors: of the GGUF file
nothing is measured, and `f16`, `bf16` and `q8_0` round its weights.

The converter would run code that comes with a model, and load pickles: it is shown a folder of
links to what is neither.
"""

from __future__ import annotations

import contextlib
import json
import runpy
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.contracts.errors import BadModel, BadRecipe, CodeFailed, describe
from tasks.runtime.gguf_converter import how_to_install
from tasks.runtime.program import Reporter, run

_SHOWN = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
_CONFIGURATIONS = ("config.json", "tokenizer_config.json")
_WHERE = "model.gguf"


def main(job: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """See the module's description.

    Raises:
        BadModel: The converter does not know the architecture or the tokenizer.
        BadRecipe: The converter lacks a module.
    """
    with tempfile.TemporaryDirectory(dir=job["work"]) as work:
        # The file names the model after its folder: always the same, for the same bytes.
        shown = Path(work) / "model"
        shown.mkdir()
        if "base" in job:
            _write_configuration(Path(job["base"]), shown)
            _show(Path(job["tokenizer"]), shown)
            _convert(job, shown, Path(work) / "trial.gguf", "--vocab-only")
            return {}
        _show(Path(job["model"]), shown)
        if not any(shown.glob("*.safetensors")):
            # Of a folder without any it makes a file without any.
            raise _unknown(f"{_architecture(shown)}, no weights in safetensors")
        file = Path(job["out"]) / gguf_name(job["type"])
        _convert(job, shown, file)
    (file.parent / "Modelfile").write_text(modelfile(file.name, end_texts(Path(job["model"]))))
    return {"file": file.name, "bytes": file.stat().st_size}


def gguf_name(kind: str) -> str:
    """The name of a model's GGUF file of a type."""
    return f"model-{kind}.gguf"


def modelfile(file: str, ends: list[str]) -> str:
    """What `ollama create` reads (https://docs.ollama.com/modelfile).

    No TEMPLATE: Ollama takes the chat template from the file's `tokenizer.chat_template`.

    Args:
        file: The name of the GGUF file, which lies beside it.
        ends: Texts that end an answer.
    """
    stops = [f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}\n" for text in ends]
    return f"FROM ./{file}\n{''.join(stops)}"


def end_texts(folder: Path) -> list[str]:
    """The special tokens that end an answer of a model, as far as its files tell, in the order of
    their ids.

    Args:
        folder: With `tokenizer.json`, and perhaps `generation_config.json`.
    """
    added = _read(folder / "tokenizer.json").get("added_tokens", [])
    texts = {token["id"]: token["content"] for token in added if token["special"]}
    ends = _read(folder / "generation_config.json").get("eos_token_id")
    named = _read(folder / "tokenizer_config.json").get("eos_token")
    named = named["content"] if isinstance(named, dict) else named
    listed = ends if isinstance(ends, list) else [ends]
    return [texts[each] for each in sorted(texts) if each in listed or texts[each] == named]


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}


def _show(folder: Path, shown: Path) -> None:
    """Link what the converter may see, and leave out what would make it look for code."""
    for path in sorted(path for pattern in _SHOWN for path in folder.glob(pattern)):
        if path.name in _CONFIGURATIONS:
            content = _read(path)
            content.pop("auto_map", None)
            (shown / path.name).write_text(json.dumps(content))
        else:
            (shown / path.name).symlink_to(path.resolve())


def _write_configuration(base: Path, shown: Path) -> None:
    """The configuration that a model trained on this base will have."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__]
    # What ships is not quantized.
    content = config.to_dict() | {"quantization_config": None, "auto_map": None}
    kept = {name: value for name, value in content.items() if value is not None}
    (shown / "config.json").write_text(json.dumps(kept, default=str))


def _convert(job: dict[str, Any], shown: Path, file: Path, *options: str) -> None:
    arguments = ["--outtype", job["type"], "--outfile", str(file), *options, str(shown)]
    try:
        with _as_script(Path(job["converter"]), arguments):
            runpy.run_path(job["converter"], run_name="__main__")
    except SystemExit as end:
        # So it ends where it does not know the architecture, and says so in the log only.
        if end.code:
            raise _unknown(f"architecture {_architecture(shown)}") from None
    except ModuleNotFoundError as error:
        raise BadRecipe(
            _WHERE,
            f"a converter ({job['converter']}) that needs the module '{error.name}'",
            "a converter that is installed with what it imports",
            f"run {how_to_install()}, or install that module",
        ) from error
    except Exception as error:
        if isinstance(error, OSError) or type(describe(error)) is not CodeFailed:
            raise  # A request to stop, or out of memory or disk: no fault of the model.
        raise _unknown(f"{_architecture(shown)}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _as_script(script: Path, arguments: list[str]) -> Iterator[None]:
    """As if it were started from the command line, with its own copy of `gguf`."""
    before = sys.argv, list(sys.path)
    for name in [name for name in sys.modules if name.split(".")[0] in ("gguf", "conversion")]:
        del sys.modules[name]
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = before


def _architecture(shown: Path) -> str:
    return ", ".join(_read(shown / "config.json").get("architectures") or ["of no name"])


def _unknown(found: str) -> BadModel:
    return BadModel(
        _WHERE,
        f"a model that llama.cpp's converter cannot convert ({found})",
        "an architecture and a tokenizer that it knows",
        "set model.gguf to none, choose another base model, or give a newer converter: set "
        "BURNISH_GGUF_CONVERTER to convert_hf_to_gguf.py of a checkout of llama.cpp",
    )


if __name__ == "__main__":
    run(main)
