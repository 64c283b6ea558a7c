"""What one would write without Burnish: one script, one process, no Prefect, cache or store.

    python -m tests.benchmarks.plain_script DATA BASE OUT SETTINGS

Reads the articles below DATA, fine-tunes BASE with LoRA on an nf4 base, evaluates the result and
the untrained base, and writes the merged model with a card to OUT. SETTINGS is a JSON object with
the recipe's names. The last line printed is a JSON object of facts, for `whole_flow`.

It takes the shortest way to the same result: batches padded to their longest example, examples of
like length together, no checkpoint that nobody would read, one import of torch for all.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from sklearn.metrics import accuracy_score, f1_score  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

SPLIT_KEY = b"burnish split 1"  # the flow's: both shall train and judge on the same articles


def main() -> None:
    """Do it all, step by step."""
    data, base, out = map(Path, sys.argv[1:4])
    settings = json.loads(sys.argv[4])
    phases = {"imports": time.perf_counter() - STARTED}
    set_seed(settings["seed"])

    began = time.perf_counter()
    splits, labels = read_splits(data, settings)
    phases["read and split"] = time.perf_counter() - began

    began = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokens = {name: encode(rows, tokenizer, settings) for name, rows in splits.items()}
    phases["tokenize"] = time.perf_counter() - began

    began = time.perf_counter()
    trainer, facts = train(base, tokenizer, tokens, labels, settings, out)
    trainer.model.save_pretrained(out / "adapter")
    phases["train"] = time.perf_counter() - began

    began = time.perf_counter()
    merge(base, labels, settings, out)
    tokenizer.save_pretrained(out)
    phases["merge and save"] = time.perf_counter() - began

    began = time.perf_counter()
    # Read back from its files: they are what would be deployed.
    candidate = evaluate(load(out, labels, settings), tokenizer, tokens["test"])
    untrained = evaluate(load(base, labels, settings), tokenizer, tokens["test"])
    phases["evaluate"] = time.perf_counter() - began
    write_card(out, settings, splits, candidate, untrained)
    facts |= {
        "rows": {name: len(rows["text"]) for name, rows in splits.items()},
        "train_tokens": sum(tokens["train"]["length"]) * settings["epochs"],
        "candidate": candidate,
        "untrained": untrained,
        "phases": {name: round(seconds, 3) for name, seconds in phases.items()},
    }
    print(json.dumps(facts))


def read_splits(folder: Path, settings: dict[str, Any]) -> tuple[dict[str, dict], list[str]]:
    """Texts and labels by split, duplicates left out, by a hash of the text in a normal form."""
    splits = {name: {"text": [], "label": []} for name in ("train", "validation", "test")}
    labels = sorted(path.name for path in folder.iterdir() if path.is_dir())
    seen = set()
    for file in sorted(folder.glob("*/*.txt")):
        raw = file.read_bytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = raw.decode("cp1252")
        normal = " ".join(unicodedata.normalize("NFKC", text).casefold().split()).encode()
        identity = hashlib.blake2b(b"%d:" % len(normal) + normal, digest_size=16).digest()
        if identity in seen:
            continue
        seen.add(identity)
        drawn = hashlib.blake2b(identity, digest_size=8, key=SPLIT_KEY).digest()
        share = int.from_bytes(drawn, "little") / 2**64
        name = "train"
        if share < settings["test"]:
            name = "test"
        elif share < settings["test"] + settings["validation"]:
            name = "validation"
        splits[name]["text"].append(text)
        splits[name]["label"].append(labels.index(file.parent.name))
    return splits, labels


def encode(rows: dict[str, list], tokenizer: Any, settings: dict[str, Any]) -> Dataset:
    """Token ids, cut to the length; without padding, which belongs to a batch."""
    encoded = tokenizer(rows["text"], truncation=True, max_length=settings["max_length"])
    return Dataset.from_dict(
        {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "length": [len(ids) for ids in encoded["input_ids"]],
            "labels": rows["label"],
        }
    )


def train(
    base: Path, tokenizer: Any, tokens: dict, labels: list[str], settings: dict, out: Path
) -> tuple[Trainer, dict[str, Any]]:
    """Train adapter and head; evaluate on the validation split after each epoch."""
    model = get_peft_model(
        load_4bit(base, labels, settings),
        LoraConfig(
            task_type="SEQ_CLS",
            r=settings["r"],
            lora_alpha=settings["alpha"],
            lora_dropout=settings["dropout"],
            target_modules=settings["target_modules"],
            modules_to_save=["classifier"],
        ),
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    steps = math.ceil(len(tokens["train"]) / settings["batch_size"]) * settings["epochs"]
    arguments = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        num_train_epochs=settings["epochs"],
        per_device_train_batch_size=settings["batch_size"],
        per_device_eval_batch_size=max(32, settings["batch_size"]),
        learning_rate=settings["learning_rate"],
        lr_scheduler_type=settings["schedule"],
        warmup_steps=math.ceil(settings["warmup"] * steps),
        weight_decay=settings["weight_decay"],
        optim=settings["optimizer"],
        bf16=settings["precision"] == "bf16",
        use_cpu=True,
        seed=settings["seed"],
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="no",
        logging_steps=max(1, steps // 10),
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to=[],
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=tokens["train"],
        eval_dataset=tokens["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda found: metrics_of(found.predictions, found.label_ids),
    )
    trainer.train()
    trained = sum(part.numel() for part in model.parameters() if part.requires_grad)
    return trainer, {"steps": trainer.state.global_step, "trained_parameters": trained}


def load_4bit(base: Path, labels: list[str], settings: dict[str, Any]) -> Any:
    """The base in nf4 with a new head, fit for training on a CPU."""
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[settings["precision"]]
    model = load(
        base,
        labels,
        settings,
        dtype=dtype,
        device_map={"": "cpu"},
        attn_implementation=settings["attention"],
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=["classifier"],
        ),
    )
    for module in model.modules():
        # With AVX512-BF16 bitsandbytes repacks the weights at the first forward in evaluation
        # mode, and training after that silently loses the gradients through them.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def load(folder: Path, labels: list[str], settings: dict[str, Any], **options: Any) -> Any:
    """A classifier from a folder; its head is new where the folder has none.

    Dropout within the frozen base has nothing to regularise, and costs a third of a step.
    """
    torch.manual_seed(settings["seed"])
    return AutoModelForSequenceClassification.from_pretrained(
        folder,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout=0.1,
        **options,
    )


def merge(base: Path, labels: list[str], settings: dict[str, Any], out: Path) -> None:
    """Add the adapter to the weights that it was trained on: the base's, rounded to nf4."""
    rounded = load_4bit(base, labels, settings).dequantize(dtype=torch.float32)
    model = PeftModel.from_pretrained(rounded, out / "adapter").float()
    model.merge_and_unload(safe_merge=True).save_pretrained(out)


@torch.inference_mode()
def evaluate(model: Any, tokenizer: Any, tokens: Dataset) -> dict[str, float]:
    """Accuracy and F1, in batches of like length."""
    model.eval()
    order = np.argsort(-np.array(tokens["length"]), kind="stable")
    found = np.empty((len(tokens), model.config.num_labels))
    for start in range(0, len(order), 32):
        rows = order[start : start + 32]
        part = tokens[rows]
        batch = tokenizer.pad(
            {name: part[name] for name in ("input_ids", "attention_mask")}, return_tensors="pt"
        )
        found[rows] = model(**batch).logits.float().numpy()
    return metrics_of(found, np.array(tokens["labels"]))


def metrics_of(logits: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Accuracy and macro F1."""
    predicted = logits.argmax(axis=-1)
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "f1": float(f1_score(truth, predicted, average="macro", zero_division=0.0)),
    }


def write_card(out: Path, settings: dict, splits: dict, candidate: dict, untrained: dict) -> None:
    """A model card with what was measured."""
    rows = "\n".join(
        f"| {name} | {value:.4f} | {untrained[name]:.4f} |" for name, value in candidate.items()
    )
    counts = ", ".join(f"{len(each['text'])} {name}" for name, each in splits.items())
    card = f"""---
library_name: transformers
pipeline_tag: text-classification
---

# News topics

{counts} examples. Settings: `{json.dumps(settings)}`.

| on the test split | candidate | untrained base |
|---|---|---|
{rows}
"""
    (out / "README.md").write_text(card)


if __name__ == "__main__":
    main()
