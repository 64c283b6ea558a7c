"""TRL's SFTTrainer. `options` of the specification: arguments of SFTConfig; `attention`.

Conversations come with labels ready made, as `assistant_only_loss` makes them from a template.
"""

from __future__ import annotations

import common
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer


def main() -> None:
    """Train and report."""
    spec = common.read_spec()
    options = dict(spec["options"])
    attention = options.pop("attention", None)
    loading = {"attn_implementation": attention} if attention else {}
    trainer = SFTTrainer(
        model=common.load_base(spec, **loading),
        args=SFTConfig(
            max_length=spec["longest"], shuffle_dataset=True, **common.arguments(spec), **options
        ),
        train_dataset=Dataset.from_list(common.read_examples(spec["train"])),
        eval_dataset=Dataset.from_list(common.read_examples(spec["validation"])),
        processing_class=AutoTokenizer.from_pretrained(spec["base"]),
        peft_config=common.lora(spec),
    )
    common.run(trainer, spec)


if __name__ == "__main__":
    main()
