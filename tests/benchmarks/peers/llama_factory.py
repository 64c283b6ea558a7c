"""LLaMA-Factory with neat_packing, through its own `run_exp`.

Two things are replaced: torchaudio, which it imports for models that listen, by an empty module;
and the encoding of an example, which looks up the token ids that all contenders get. Packing,
collator, model, trainer are its own.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from pathlib import Path
from typing import Any

sys.modules["torchaudio"] = types.ModuleType("torchaudio")
sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)

import common  # noqa: E402
from llamafactory.data.processor.supervised import SupervisedDatasetProcessor  # noqa: E402
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer  # noqa: E402
from llamafactory.train.tuner import run_exp  # noqa: E402


def main() -> None:
    """Train and report."""
    spec = common.read_spec()
    folder = Path(spec["scratch"])
    examples = {name: common.read_examples(spec[name]) for name in ("train", "validation")}
    for name, rows in examples.items():
        listed = [
            {"instruction": name, "input": "", "output": str(number)} for number in range(len(rows))
        ]
        (folder / f"{name}.json").write_text(json.dumps(listed))
    files = {name: {"file_name": f"{name}.json"} for name in examples}
    (folder / "dataset_info.json").write_text(json.dumps(files))
    SupervisedDatasetProcessor._encode_data_example = _lookup(examples)
    clock = common.Clock(spec["pad"])
    step = CustomSeq2SeqTrainer.training_step
    CustomSeq2SeqTrainer.training_step = lambda self, *rest, **options: clock.counted(
        lambda *given, **named: step(self, *given, **named)
    )(*rest, **options)
    run_exp(
        {
            **common.arguments(spec),
            "stage": "sft",
            "do_train": True,
            "do_eval": False,
            "model_name_or_path": spec["base"],
            "finetuning_type": "lora",
            "lora_target": "all",
            "lora_rank": spec["rank"],
            "lora_alpha": spec["alpha"],
            "lora_dropout": 0.0,
            "template": "empty",
            "dataset_dir": str(folder),
            "dataset": "train",
            "eval_dataset": "validation",
            # Packed, it drops without an error what is as long as that, and wants a multiple of 8.
            "cutoff_len": spec["longest"] + 8,
            "neat_packing": True,
            "overwrite_cache": True,
            "disable_gradient_checkpointing": True,
            "flash_attn": "sdpa",
            **spec["options"],
        },
        callbacks=[clock],
    )
    common.report(clock, spec)


def _lookup(examples: dict[str, list[dict[str, list[int]]]]) -> Any:
    def encode(_: Any, prompt: Any, response: Any, **__: Any) -> tuple[list[int], list[int]]:
        example = examples[prompt[0]["content"]][int(response[0]["content"])]
        return example["input_ids"], example["labels"]

    return encode


if __name__ == "__main__":
    main()
