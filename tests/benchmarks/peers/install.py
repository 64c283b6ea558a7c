"""Makes the environments of those that Burnish is compared with: outside of the repository.

    python -m tests.benchmarks.peers.install FOLDER

torch is asked for first, alone and by version: on an index that has a CPU build of it, any other
request would fetch gigabytes of CUDA libraries.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from importlib import metadata
from pathlib import Path

FOLDER = Path(tempfile.gettempdir()) / "burnish-peers"
TORCH = f"torch=={metadata.version('torch').partition('+')[0]}"
LIKE_OURS = ("transformers", "peft", "accelerate")
TRL = ("trl==1.16.0", "datasets")
LLAMA_FACTORY = "llamafactory==0.9.5"
# Its own bounds, without what trains nothing: torchvision, torchaudio, gradio, modelscope, servers.
LLAMA_FACTORY_NEEDS = (
    "transformers>=4.55.0,<=5.6.0,!=4.57.0,!=5.6.0",
    "datasets<=4.0.0",
    "accelerate<=1.11.0",
    "peft>=0.18.0,<=0.18.1",
    "trl>=0.18.0,<=0.24.0",
    "torchdata>=0.10.0,<=0.11.0",
    "tyro<0.9.0",
    *("einops", "fire", "hf-transfer", "matplotlib", "numpy", "omegaconf", "packaging", "pandas"),
    *("protobuf", "pydantic", "pyyaml", "safetensors", "scipy", "sentencepiece", "tiktoken"),
)


def trl(folder: Path) -> Path:
    """The Python of an environment with TRL, and the same transformers and peft as here.

    Args:
        folder: For the environments; what was made before is used.

    Raises:
        CalledProcessError: It could not be installed.
    """
    versions = [f"{name}=={metadata.version(name)}" for name in LIKE_OURS]
    return _environment(folder / "trl", [[*TRL, *versions]])


def llama_factory(folder: Path) -> Path:
    """The Python of an environment with LLaMA-Factory, in the newest versions that it allows.

    Args:
        folder: As for `trl`.

    Raises:
        CalledProcessError: It could not be installed.
    """
    return _environment(folder / "lf", [["--no-deps", LLAMA_FACTORY], list(LLAMA_FACTORY_NEEDS)])


def versions(python: Path, names: tuple[str, ...]) -> dict[str, str]:
    """What is installed in an environment."""
    line = "import sys; from importlib.metadata import version as v\nfor n in sys.argv[1:]: "
    found = subprocess.run(
        [python, "-c", line + "print(v(n))", *names], capture_output=True, text=True, check=True
    )
    return dict(zip(names, found.stdout.split(), strict=True))


def _environment(folder: Path, requests: list[list[str]]) -> Path:
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if ready.is_file():
        return python
    venv.create(folder, with_pip=True)
    bound = folder / "constraints.txt"
    bound.write_text(f"{TORCH}\n")
    pip = [python, "-m", "pip", "install", "-q"]
    subprocess.run([*pip, TORCH], check=True)
    for request in requests:
        subprocess.run([*pip, "-c", bound, *request], check=True)
    ready.touch()
    return python


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for make in (trl, llama_factory):
        print(make(where))
