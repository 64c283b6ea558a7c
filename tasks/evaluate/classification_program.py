"""Score a classifier on each example, loaded the way a consumer loads it.

Job: `ScoreClassificationJob`. `examples` has the columns hash_hi, hash_lo, text, label, optionally
text_pair, and columns to slice by. Latency is the median of single calls, including the tokenizer.

`scores.parquet` has the rows of `examples`, in their order: hash_hi, hash_lo, label, predicted,
correct, loss (null if the model does not have the label), length (tokens, before truncation), and
the columns to slice by as strings.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from tasks.contracts.jobs import LossCheckJob, ScoreClassificationJob, ScoreResult
from tasks.evaluate import release_check, released_model
from tasks.models import classifier
from tasks.models.load_errors import release_load_errors
from tasks.runtime.program import Reporter, run

_EXAMPLE_COLUMNS = ("hash_hi", "hash_lo", "text", "text_pair", "label")
_WARM_UP_CALLS, _TIMED_CALLS = 3, 30


def main(job: ScoreClassificationJob, reporter: Reporter) -> ScoreResult:
    """See the module's description.

    Raises:
        BadModel: The model cannot be loaded, or its logits are not valid.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    reporter.progress(always=True, stage="loading model")
    scorer = Scorer(job)
    examples = pq.read_table(job.examples, memory_map=True)
    scorer.smoke_test(examples)
    if job.check:
        reporter.progress(always=True, stage="checking the release")
        scorer.check_release(job.check, examples)
    encoded = scorer.encode(examples)
    logits = scorer.logits(encoded, job.batch_size, reporter)
    table = _scores(examples, logits, encoded["full_length"], scorer.labels)
    job.out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, job.out, compression="zstd")
    return ScoreResult(
        labels=tuple(scorer.labels),
        size_bytes=released_model.size_of(job.model),
        milliseconds_per_example=scorer.latency(examples) if job.measure_latency else None,
    )


class Scorer:
    """A classifier with its tokenizer, loaded for scoring.

    Attributes:
        labels: The model's labels, in the order of their ids.
    """

    def __init__(self, job: ScoreClassificationJob) -> None:
        """Load model and tokenizer.

        Args:
            job: The program's job.

        Raises:
            BadModel: Model or tokenizer cannot be loaded, or the model names no labels.
        """
        self._folder, self._device = job.model, job.device
        self._tokenizer = classifier.load_tokenizer(job.tokenizer or job.model)
        self._model = _load(job).eval()
        config = self._model.config
        if config.pad_token_id is None:
            config.pad_token_id = self._tokenizer.pad_token_id
        self.labels = [str(config.id2label[number]) for number in range(config.num_labels)]
        self._max_length = released_model.token_limit(job.max_length, self._tokenizer, config)

    def smoke_test(self, examples: pa.Table) -> None:
        """Classify one example.

        Raises:
            BadModel: The logits do not have the shape of the labels, or are not finite.
        """
        encoded = self.encode(examples.slice(0, 1))
        found = self._forward(encoded, np.array([0]))
        if found.shape != (1, len(self.labels)) or not np.isfinite(found).all():
            what = f"logits of shape {tuple(found.shape)}"
            if not np.isfinite(found).all():
                what += " that are not finite"
            raise released_model.wrong_answer(
                what, f"finite logits of shape (1, {len(self.labels)})"
            )

    def check_release(self, check: LossCheckJob, examples: pa.Table) -> None:
        """Check that the model is the one that was trained, and works for a consumer.

        Raises:
            BadModel: It is not, or does not.
        """
        table = pq.read_table(check.examples)
        encoded = table.drop_columns("labels").to_pydict()
        encoded["attention_mask"] = [[1] * len(ids) for ids in encoded["input_ids"]]
        logits = torch.from_numpy(self._forward(encoded, np.arange(len(table))))
        labels = torch.tensor(table.column("labels").to_pylist())
        loss = torch.nn.functional.cross_entropy(logits, labels).item()
        release_check.check_loss(loss, check.loss, len(table))
        some = examples.slice(0, release_check.CHECKED_TOKENS)
        names = ("input_ids", "token_type_ids")
        scored = self.encode(some)
        shipped = AutoTokenizer.from_pretrained(self._folder, trust_remote_code=False)
        served = shipped(*self._texts(some), truncation=True)
        release_check.check_tokens(
            [[scored[name][row] for name in names if name in scored] for row in range(len(some))],
            [[served[name][row] for name in names if name in served] for row in range(len(some))],
        )
        release_check.try_classifier(self._model, self._folder, self._device)

    def encode(self, examples: pa.Table) -> dict[str, Any]:
        """Token ids of each example, truncated to the model's length, and the full lengths."""
        texts = self._texts(examples)
        encoded = dict(self._tokenizer(*texts, truncation=False, verbose=False))
        full = np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int32)
        long = np.flatnonzero(full > self._max_length).tolist()
        if long:
            parts = [[column[row] for row in long] for column in texts]
            cut = self._tokenizer(*parts, truncation=True, max_length=self._max_length)
            for name in encoded:
                for number, row in enumerate(long):
                    encoded[name][row] = cut[name][number]
        return encoded | {"full_length": full}

    def _texts(self, examples: pa.Table) -> list[list[str]]:
        texts = [examples.column("text").to_pylist()]
        if "text_pair" in examples.column_names:
            texts.append([text or "" for text in examples.column("text_pair").to_pylist()])
        return texts

    def logits(self, encoded: dict[str, Any], batch_size: int, reporter: Reporter) -> np.ndarray:
        """Logits of every example, in the given order.

        Args:
            encoded: The result of `encode`.
            batch_size: Examples per batch.
            reporter: Receives the progress.

        Returns:
            Array of shape (examples, labels), float64.
        """
        lengths = np.array([len(ids) for ids in encoded["input_ids"]])
        found = np.empty((len(lengths), len(self.labels)))
        # Longest first: little padding, and running out of memory shows at once.
        order = np.argsort(-lengths, kind="stable")
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            found[rows] = self._forward(encoded, rows)
            reporter.progress(stage="scoring", done=first + len(rows), of=len(order))
        return found

    def latency(self, examples: pa.Table) -> float:
        """Median milliseconds of a call with a single example, from text to logits."""
        calls = min(_TIMED_CALLS, len(examples)) + _WARM_UP_CALLS
        rows = np.linspace(0, len(examples) - 1, calls).astype(int).tolist()
        times = []
        for row in rows:
            start = time.perf_counter()
            self._forward(self.encode(examples.slice(row, 1)), np.array([0]))
            times.append(1000 * (time.perf_counter() - start))
        return round(statistics.median(times[_WARM_UP_CALLS:]), 3)

    @torch.inference_mode()
    def _forward(self, encoded: dict[str, Any], rows: np.ndarray) -> np.ndarray:
        columns = {
            name: encoded[name] for name in self._tokenizer.model_input_names if name in encoded
        }
        picked = {name: [column[row] for row in rows] for name, column in columns.items()}
        batch = self._tokenizer.pad(picked, return_tensors="pt").to(self._device)
        # The copy to the host also waits for the device, which timing needs.
        return self._model(**batch).logits.double().cpu().numpy()


def _load(job: ScoreClassificationJob) -> Any:
    if job.kind == "untrained":
        model, _ = classifier.load_classifier(
            job.base or job.model,
            list(job.labels),
            seed=job.seed,
            fresh_head=True,
            device=job.device,
        )
        return model
    with release_load_errors("AutoModelForSequenceClassification"):
        if job.kind == "adapter":
            return _load_adapter(job)
        return AutoModelForSequenceClassification.from_pretrained(
            job.model, trust_remote_code=False, use_safetensors=True, device_map={"": job.device}
        )


def _load_adapter(job: ScoreClassificationJob) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(job.model, trust_remote_code=False)
    labels = [config.id2label[number] for number in range(config.num_labels)]
    heads = _saved_modules(job.model) if job.quantization == "nf4" else ()
    base: PreTrainedModel
    base, _ = classifier.load_classifier(
        job.base,
        labels,
        seed=0,
        dtype=torch.float32,
        quantization=job.quantization,
        head_modules=heads,
        device=job.device,
    )
    base.config.pad_token_id = config.pad_token_id
    return released_model.add_adapter(base, job.model)


def _saved_modules(folder: Path) -> list[str]:
    from peft import PeftConfig

    return sorted(set(PeftConfig.from_pretrained(folder).modules_to_save or ()))


def _scores(
    examples: pa.Table, logits: np.ndarray, lengths: np.ndarray, labels: list[str]
) -> pa.Table:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    truth = [str(label) for label in examples.column("label").to_pylist()]
    numbers = {label: number for number, label in enumerate(labels)}
    known = np.array([numbers.get(label, -1) for label in truth], dtype=np.int64)
    loss = -log_probabilities[np.arange(len(truth)), known]
    predicted = [labels[number] for number in logits.argmax(axis=1)]
    # A prediction from logits that are not numbers is never right, whatever its label.
    right = np.isfinite(logits).all(axis=1) & (logits.argmax(axis=1) == known)
    table = {
        "hash_hi": examples.column("hash_hi").cast(pa.uint64()),
        "hash_lo": examples.column("hash_lo").cast(pa.uint64()),
        "label": pa.array(truth, pa.string()),
        "predicted": pa.array(predicted, pa.string()),
        "correct": pa.array(right, pa.bool_()),
        "loss": pa.array(loss, pa.float64(), mask=known < 0, from_pandas=False),
        "length": pa.array(lengths, pa.int32()),
    }
    for name in examples.column_names:
        if name not in _EXAMPLE_COLUMNS:
            table[name] = examples.column(name).cast(pa.string())
    return pa.table(table)


if __name__ == "__main__":
    run(main, ScoreClassificationJob)
