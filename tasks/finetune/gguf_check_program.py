"""Checks, before training, that llama.cpp's converter can export the model that will ship.

Job: `CheckGgufJob`. It converts the configuration and the vocabulary only, and discards the result.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tasks.contracts.jobs import CheckGgufJob, Done
from tasks.finetune.gguf_export_program import convert, link_files
from tasks.runtime.program import Reporter, run


def main(job: CheckGgufJob, reporter: Reporter) -> Done:
    """Run the converter without weights; see the module docstring.

    Raises:
        BadModel: The converter does not know the architecture or the tokenizer.
        BadRecipe: The converter lacks a module.
    """
    with tempfile.TemporaryDirectory(dir=job.work) as work:
        folder = Path(work) / "model"
        folder.mkdir()
        _write_configuration(job.base, folder)
        link_files(job.tokenizer, folder)
        convert(job.converter, folder, Path(work) / "check.gguf", job.file_type, "--vocab-only")
    return Done()


def _write_configuration(base: Path, folder: Path) -> None:
    """Write the configuration that a model trained on this base will have."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__]
    # The model that ships is not quantized, and its own code is never run.
    content = config.to_dict() | {"quantization_config": None, "auto_map": None}
    kept = {name: value for name, value in content.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept, default=str))


if __name__ == "__main__":
    run(main, CheckGgufJob)
