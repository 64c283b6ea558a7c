"""Writes a model as one GGUF file, for llama.cpp and Ollama, with llama.cpp's own converter.

Job: `ExportGgufJob`. Its folder `out` gets `model-<type>.gguf` and a `Modelfile` for Ollama.

The same model gives the same bytes. Only the safetensors model is scored, not the GGUF file;
`f16`, `bf16` and `q8_0` round its weights.

The converter would run code that comes with a model, and load pickles, so it gets a folder with
links to the other files only.
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
from tasks.contracts.jobs import ExportGgufJob, ExportGgufResult
from tasks.runtime.gguf_converter import how_to_install
from tasks.runtime.program import Reporter, run

_LINKED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
_CONFIGURATIONS = ("config.json", "tokenizer_config.json")
_WHERE = "model.gguf"


def main(job: ExportGgufJob, reporter: Reporter) -> ExportGgufResult:
    """See the module's description.

    Raises:
        BadModel: The converter does not know the architecture or the tokenizer.
        BadRecipe: The converter lacks a module.
    """
    with tempfile.TemporaryDirectory(dir=job.work) as work:
        # The GGUF file names the model after its folder: the same name for the same bytes.
        folder = Path(work) / "model"
        folder.mkdir()
        link_files(job.model, folder)
        if not any(folder.glob("*.safetensors")):
            # The converter would write a file without weights.
            raise _unknown(f"{_architecture(folder)}, no weights in safetensors")
        file = job.out / gguf_name(job.file_type)
        convert(job.converter, folder, file, job.file_type)
    (file.parent / "Modelfile").write_text(modelfile(file.name, end_texts(job.model)))
    return ExportGgufResult(file=file.name, bytes=file.stat().st_size)


def gguf_name(kind: str) -> str:
    """The name of a GGUF file whose weights have a type."""
    return f"model-{kind}.gguf"


def modelfile(file: str, ends: list[str]) -> str:
    """The text of Ollama's `Modelfile` (https://docs.ollama.com/modelfile).

    It has no TEMPLATE: Ollama reads the chat template from the GGUF file.

    Args:
        file: The name of the GGUF file in the same folder.
        ends: Texts that end an answer.
    """
    stops = [f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}\n" for text in ends]
    return f"FROM ./{file}\n{''.join(stops)}"


def end_texts(folder: Path) -> list[str]:
    """The special tokens that end an answer according to a model's files, ordered by id.

    Args:
        folder: With `tokenizer.json`, and optionally `generation_config.json`.
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


def link_files(folder: Path, target: Path) -> None:
    """Link the files that the converter may read, without references to code.

    Args:
        folder: A model's folder, or a part of one.
        target: The folder that the converter gets.
    """
    for path in sorted(path for pattern in _LINKED for path in folder.glob(pattern)):
        if path.name in _CONFIGURATIONS:
            content = _read(path)
            content.pop("auto_map", None)
            (target / path.name).write_text(json.dumps(content))
        else:
            (target / path.name).symlink_to(path.resolve())


def convert(converter: Path, model: Path, file: Path, file_type: str, *options: str) -> None:
    """Run llama.cpp's converter.

    Args:
        converter: The converter's script.
        model: Folder with the files that it may read.
        file: The GGUF file to write.
        file_type: The type of its weights.
        *options: More options of the script.

    Raises:
        BadModel: It does not know the architecture or the tokenizer.
        BadRecipe: It lacks a module.
    """
    arguments = ["--outtype", file_type, "--outfile", str(file), *options, str(model)]
    try:
        with _as_script(converter, arguments):
            runpy.run_path(str(converter), run_name="__main__")
    except SystemExit as end:
        # It exits if it does not know the architecture, and says so in the log only.
        if end.code:
            raise _unknown(f"architecture {_architecture(model)}") from None
    except ModuleNotFoundError as error:
        raise BadRecipe(
            _WHERE,
            f"a converter ({converter}) that needs the module '{error.name}'",
            "a converter that is installed with what it imports",
            f"run {how_to_install()}, or install that module",
        ) from error
    except Exception as error:
        if isinstance(error, OSError) or type(describe(error)) is not CodeFailed:
            raise  # A request to stop, or no memory or disk space: not the model's fault.
        raise _unknown(f"{_architecture(model)}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _as_script(script: Path, arguments: list[str]) -> Iterator[None]:
    """Make the script see its command line, and its own copy of `gguf`."""
    before = sys.argv, list(sys.path)
    for name in [name for name in sys.modules if name.split(".")[0] in ("gguf", "conversion")]:
        del sys.modules[name]
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = before


def _architecture(model: Path) -> str:
    return ", ".join(_read(model / "config.json").get("architectures") or ["without a name"])


def _unknown(found: str) -> BadModel:
    return BadModel(
        _WHERE,
        f"a model that llama.cpp's converter cannot convert ({found})",
        "an architecture and a tokenizer that it knows",
        "set model.gguf to none, choose another base model, or use a newer converter: set "
        "BURNISH_GGUF_CONVERTER to convert_hf_to_gguf.py of a checkout of llama.cpp",
    )


if __name__ == "__main__":
    run(main, ExportGgufJob)
