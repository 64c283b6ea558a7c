"""Exports a model to one GGUF file, for llama.cpp and Ollama, with llama.cpp's own converter.

Job: `ExportGgufJob`. It writes `model-<type>.gguf` and a `Modelfile` for Ollama to `out`.

The same model gives the same bytes. The safetensors model is scored, not the GGUF file, whose
weights are rounded with `f16`, `bf16` and `q8_0`.

The converter would load pickles and run code that comes with a model. So it gets a folder with
links to the safe files only.
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
    """Export the model; see the module docstring.

    Raises:
        BadModel: The converter does not know the architecture or the tokenizer.
        BadRecipe: The converter lacks a module.
    """
    with tempfile.TemporaryDirectory(dir=job.work) as work:
        # The GGUF file holds the folder's name: the same name gives the same bytes.
        folder = Path(work) / "model"
        folder.mkdir()
        link_files(job.model, folder)
        if not any(folder.glob("*.safetensors")):
            # Otherwise the converter writes a file without weights.
            raise _cannot_convert(f"{_architecture(folder)}, no weights in safetensors")
        file = job.out / gguf_name(job.file_type)
        convert(job.converter, folder, file, job.file_type)
    (file.parent / "Modelfile").write_text(modelfile(file.name, stop_strings(job.model)))
    return ExportGgufResult(file=file.name, bytes=file.stat().st_size)


def gguf_name(file_type: str) -> str:
    """Return the name of the GGUF file for a type of weights."""
    return f"model-{file_type}.gguf"


def modelfile(file: str, stops: list[str]) -> str:
    """Return the text of Ollama's `Modelfile` (https://docs.ollama.com/modelfile).

    It has no TEMPLATE: Ollama reads the chat template from the GGUF file.

    Args:
        file: The name of the GGUF file in the same folder.
        stops: Strings that end an answer.
    """
    lines = [f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}\n" for text in stops]
    return f"FROM ./{file}\n{''.join(lines)}"


def stop_strings(folder: Path) -> list[str]:
    """Return the special tokens that end an answer according to the model's files, by id.

    Args:
        folder: The model's folder, with `tokenizer.json` and optionally `tokenizer_config.json` and
            `generation_config.json`.
    """
    added = _read_json(folder / "tokenizer.json").get("added_tokens", [])
    special = {token["id"]: token["content"] for token in added if token["special"]}
    stop_ids = _read_json(folder / "generation_config.json").get("eos_token_id")
    stop_ids = stop_ids if isinstance(stop_ids, list) else [stop_ids]
    end = _read_json(folder / "tokenizer_config.json").get("eos_token")
    end = end["content"] if isinstance(end, dict) else end
    return [special[id_] for id_ in sorted(special) if id_ in stop_ids or special[id_] == end]


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}


def link_files(folder: Path, target: Path) -> None:
    """Link the files that the converter may read, and drop references to remote code.

    Args:
        folder: The folder of a model or of its tokenizer.
        target: The folder that the converter gets.
    """
    for path in sorted(path for pattern in _LINKED for path in folder.glob(pattern)):
        if path.name in _CONFIGURATIONS:
            content = _read_json(path)
            content.pop("auto_map", None)
            (target / path.name).write_text(json.dumps(content))
        else:
            (target / path.name).symlink_to(path.resolve())


def convert(converter: Path, model: Path, file: Path, file_type: str, *options: str) -> None:
    """Run llama.cpp's converter.

    Args:
        converter: The converter's script.
        model: Folder with the files that the converter may read.
        file: The GGUF file to write.
        file_type: The type of the file's weights.
        *options: More options for the script.

    Raises:
        BadModel: The converter does not know the architecture or the tokenizer.
        BadRecipe: The converter lacks a module.
    """
    arguments = ["--outtype", file_type, "--outfile", str(file), *options, str(model)]
    try:
        with _as_script(converter, arguments):
            runpy.run_path(str(converter), run_name="__main__")
    except SystemExit as exit_:
        # The converter exits on an unknown architecture, with the reason in its log only.
        if exit_.code:
            raise _cannot_convert(f"architecture {_architecture(model)}") from None
    except ModuleNotFoundError as error:
        raise BadRecipe(
            _WHERE,
            f"a converter ({converter}) that needs the module '{error.name}'",
            "a converter with the modules that it imports",
            f"run {how_to_install()}, or install that module",
        ) from error
    except Exception as error:
        if isinstance(error, OSError) or type(describe(error)) is not CodeFailed:
            raise  # Out of memory or disk space, or asked to stop: not the model's fault.
        raise _cannot_convert(f"{_architecture(model)}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _as_script(script: Path, arguments: list[str]) -> Iterator[None]:
    """Give the script its command line, and its own copy of `gguf`."""
    saved = sys.argv, list(sys.path)
    for name in [name for name in sys.modules if name.split(".")[0] in ("gguf", "conversion")]:
        del sys.modules[name]
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = saved


def _architecture(model: Path) -> str:
    return ", ".join(_read_json(model / "config.json").get("architectures") or ["no architecture"])


def _cannot_convert(found: str) -> BadModel:
    return BadModel(
        _WHERE,
        f"a model that llama.cpp's converter cannot convert ({found})",
        "an architecture and a tokenizer that the converter knows",
        "set model.gguf to none, choose another base model, or use a newer converter: set "
        "BURNISH_GGUF_CONVERTER to convert_hf_to_gguf.py in a checkout of llama.cpp",
    )


if __name__ == "__main__":
    run(main, ExportGgufJob)
