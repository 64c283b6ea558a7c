"""transformers' Trainer with PEFT, each batch padded to its longest example."""

from __future__ import annotations

import common
from datasets import Dataset
from peft import get_peft_model
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
    set_seed,
)


def main() -> None:
    """Train and report."""
    spec = common.read_spec()
    set_seed(spec["seed"])
    tokenizer = AutoTokenizer.from_pretrained(spec["base"])
    train, validation = (
        Dataset.from_list(
            [
                {**example, "attention_mask": [1] * len(example["input_ids"])}
                for example in common.read_examples(spec[name])
            ]
        )
        for name in ("train", "validation")
    )
    trainer = Trainer(
        model=get_peft_model(common.load_base(spec), common.lora(spec)),
        args=TrainingArguments(
            per_device_train_batch_size=spec["batch"],
            per_device_eval_batch_size=spec["batch"],
            **common.arguments(spec),
            **spec["options"],
        ),
        train_dataset=train,
        eval_dataset=validation,
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=common.IGNORED),
    )
    common.run(trainer, spec)


if __name__ == "__main__":
    main()
