"""Scores a language model input by input, loaded the way a consumer loads it.

Job: `ScoreLanguageJob`. `examples` has the columns hash_hi, hash_lo, example, label, and slicing
columns; rows of equal hashes are one input with several answers. The model's own chat template and
tokenizer are used, unless the job names a tokenizer. Latency: if answers are generated, the median,
over prompts that are answered one by one, of the milliseconds of a token, reading the prompt
included; otherwise the median of single calls, from text to loss.

`scores.parquet` has a row for each distinct input, in the order of `examples`: hash_hi, hash_lo,
label, loss, tokens, length (of the longest example, before cutting), and the slicing columns as
strings.

- completion, instruction: loss is the mean negative log-likelihood (nats) of the target tokens of
  all its answers, and tokens their number.
- preference: an answer's score is its log-likelihood. accuracy is the share of the input's pairs
  in which the chosen answer has the higher one; loss is the mean of -log sigmoid(beta * (log
  p(chosen) - log p(rejected))), which is DPO's loss (Rafailov et al. 2023, arXiv:2305.18290,
  equation 7) with a reference that finds all answers equally likely, so that a model can be scored
  alone. tokens are those of all answers.
- where answers are written: generated (greedily, without the end, stripped of surrounding spaces),
  said (the same without its thought, where the chat template knows of thoughts; an answer whose
  thought does not end says nothing), reference (the first, without its thought), and of what is
  said exact_match, token_f1, rouge_l (the best over all references) and checks (null where none is
  asked).

An example that is too long is cut as in training, at its end; where that would cut off the whole
answer, its beginning is cut off instead. A text without a prompt is written on from its middle.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers.utils import logging

from tasks.chat import encoder
from tasks.chat.stop_tokens import stop_token_ids, training_tokenizer
from tasks.contracts.errors import BadModel, BadRecipe
from tasks.contracts.jobs import ModelJob, ScoreLanguageJob, ScoreResult
from tasks.evaluate import answer_metrics, released_model
from tasks.evaluate.generation import Generator
from tasks.models import causal
from tasks.models.load_errors import release_load_errors
from tasks.runtime.program import Reporter, run
from tasks.training import losses

_OWN_COLUMNS = ("hash_hi", "hash_lo", "text", "text_pair", "label", "example")
_WARM_UP_CALLS, _TIMED_CALLS = 2, 10
_TIMED_TOKENS = 32
# Of one forward pass, padding included. One example may have more.
_TOKENS_AT_ONCE = {"cpu": 4_096, "cuda": 32_768}
# Logits at once, where they cannot be made chunk by chunk. One example may have more.
_LOGIT_BYTES = 2**29


class Input(NamedTuple):
    """One input and all that is known to answer it.

    Attributes:
        row: Its first row among the examples.
        examples: One for each answer.
    """

    row: int
    examples: list[dict[str, Any]]


class Sequence(NamedTuple):
    """Tokens to compute a likelihood of.

    Attributes:
        owner: Number of the input.
        side: 1 for the rejected answer of a pair, else 0.
        ids: Token ids, cut to the model's length.
        loss_mask: 1 for those whose likelihood counts.
        full: Tokens before cutting.
    """

    owner: int
    side: int
    ids: list[int]
    loss_mask: list[int]
    full: int


def main(job: ScoreLanguageJob, reporter: Reporter) -> ScoreResult:
    """See the module's description.

    Raises:
        BadModel: The model cannot be loaded, or answers with something that is no number.
        BadRecipe: A check is not valid, or answers may be longer than the model's memory.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    checks = answer_metrics.Checks(job.must_match, job.must_not_contain, job.json_schema)
    reporter.progress(always=True, stage="loading model")
    scorer = Scorer(job)
    examples = pq.read_table(job.examples, memory_map=True)
    inputs = gather(examples)
    scorer.smoke_test(inputs)
    columns = scorer.likelihoods(inputs, reporter)
    if job.generate_tokens:
        columns |= scorer.answers(inputs, checks, reporter)
    reporter.progress(always=True, stage="writing scores")
    job.out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(_table(examples, inputs, columns), job.out, compression="zstd")
    return ScoreResult(
        labels=(),
        size_bytes=released_model.size_of(job.model),
        milliseconds_per_example=scorer.latency(inputs) if job.measure_latency else None,
    )


def gather(examples: pa.Table) -> list[Input]:
    """The distinct inputs, in the order in which they first occur."""
    found: dict[tuple[int, int], Input] = {}
    columns = (examples.column(name).to_pylist() for name in ("hash_hi", "hash_lo", "example"))
    for row, (high, low, example) in enumerate(zip(*columns, strict=True)):
        one = found.setdefault((high, low), Input(row, []))
        one.examples.append(orjson.loads(example))
    return list(found.values())


class Scorer:
    """A language model and its tokenizer, ready to be asked."""

    def __init__(self, job: ScoreLanguageJob) -> None:
        """Load them.

        Args:
            job: The program's job.

        Raises:
            BadModel: Model or tokenizer cannot be loaded.
            BadRecipe: Answers may be longer than the model's memory.
        """
        self._job, self._task, self._device = job, job.task, job.device
        self._tokenizer = training_tokenizer(job.tokenizer or job.model)
        model = load(job).eval().requires_grad_(False)
        self._model = model.get_base_model() if job.kind == "adapter" else model
        config = self._model.config
        self._limit = released_model.token_limit(job.max_length, self._tokenizer, config)
        self._room = released_model.positions_of(config) - job.generate_tokens
        if self._room < 1:
            raise BadRecipe(
                "evaluation.generate_tokens",
                str(job.generate_tokens),
                f"fewer than the model's {released_model.positions_of(config)} positions",
                "ask for shorter answers",
            )
        ends = stop_token_ids(self._tokenizer, self._model.generation_config)
        pad = self._tokenizer.pad_token_id
        self._writer = Generator(self._model, ends, ends[0] if pad is None else pad)
        self._linear = causal.head_is_linear(self._model, self._device)

    def smoke_test(self, inputs: list[Input]) -> None:
        """Ask for the loss of one example, and for the beginning of an answer.

        Raises:
            BadModel: The loss is not finite.
        """
        shortest = min(inputs, key=lambda one: len(orjson.dumps(one.examples[0])))
        found = self._nats(self._sequences([shortest]))
        if not np.isfinite(found).all():
            raise released_model.wrong_answer(
                "a loss that is not finite", "a finite loss of every token"
            )
        if self._job.generate_tokens:
            self._writer.write([self._prompt(shortest)[0]], 1, 1)

    def likelihoods(self, inputs: list[Input], reporter: Reporter) -> dict[str, pa.Array]:
        """What the model thinks of the known answers: a column for each fact of the table."""
        sequences = self._sequences(inputs)
        nats = self._nats(sequences, reporter)
        owners = np.array([sequence.owner for sequence in sequences])
        counts = np.array([sum(sequence.loss_mask) for sequence in sequences])
        tokens = np.bincount(owners, counts, len(inputs)).astype(np.int64)
        lengths = np.zeros(len(inputs), np.int64)
        np.maximum.at(lengths, owners, [sequence.full for sequence in sequences])
        facts = {"tokens": pa.array(tokens, pa.int32()), "length": pa.array(lengths, pa.int32())}
        if self._task == "preference":
            return facts | self._preferences(owners[::2], nats[::2], nats[1::2], len(inputs))
        # Nothing to learn, nothing lost: such a row has no weight.
        loss = np.bincount(owners, nats, len(inputs)) / np.maximum(tokens, 1)
        return {"loss": pa.array(loss, pa.float64()), **facts}

    def answers(
        self, inputs: list[Input], checks: answer_metrics.Checks, reporter: Reporter
    ) -> dict[str, pa.Array]:
        """What the model writes, and what that is worth: a column for each fact of the table."""
        asked = [self._prompt(one) for one in inputs]
        reporter.progress(always=True, stage="generating", done=0, of=len(inputs))
        written = self._writer.write(
            [prompt for prompt, _ in asked],
            self._job.generate_tokens,
            self._job.batch_size,
            lambda done: reporter.progress(stage="generating", done=done, of=len(inputs)),
        )
        reporter.progress(always=True, stage="comparing")
        texts = [
            encoder.decode_answer(self._tokenizer, one.examples[0], self._task, answer.ids)
            for one, answer in zip(inputs, written, strict=True)
        ]
        said = [
            self._spoken(one, text, written=True) for one, text in zip(inputs, texts, strict=True)
        ]
        right = [
            [self._spoken(one, reference, written=False) for reference in references]
            for one, (_, references) in zip(inputs, asked, strict=True)
        ]
        pairs = list(zip(said, right, strict=True))
        measures: dict[str, Callable[[str, list[str]], float]] = {
            "exact_match": answer_metrics.exact_match,
            "token_f1": answer_metrics.token_f1,
            "rouge_l": answer_metrics.rouge_l,
        }
        return {
            "generated": pa.array(texts, pa.string()),
            "said": pa.array(said, pa.string()),
            "reference": pa.array([references[0] for references in right], pa.string()),
            **{
                name: pa.array([measure(*pair) for pair in pairs], pa.float64())
                for name, measure in measures.items()
            },
            "checks": pa.array([checks(text) for text in said], pa.float64()),
        }

    def latency(self, inputs: list[Input]) -> float:
        """Median milliseconds of a token, or of a single call; see the module's description."""
        calls = min(_TIMED_CALLS, len(inputs)) + _WARM_UP_CALLS
        places = np.linspace(0, len(inputs) - 1, calls).astype(int).tolist()
        times = []
        for place in places:
            began = time.perf_counter()
            if self._job.generate_tokens:
                prompt, _ = self._prompt(inputs[place])
                tokens = min(self._job.generate_tokens, _TIMED_TOKENS)
                steps = self._writer.write([prompt], tokens, 1)[0].steps
            else:
                self._nats(self._sequences([inputs[place]]))
                steps = 1
            times.append(1000 * (time.perf_counter() - began) / steps)
        return round(statistics.median(times[_WARM_UP_CALLS:]), 3)

    def _sequences(self, inputs: list[Input]) -> list[Sequence]:
        examples = [example for one in inputs for example in one.examples]
        owners = [owner for owner, one in enumerate(inputs) for _ in one.examples]
        found = []
        groups = encoder.encode_examples(self._tokenizer, examples, self._task)
        for owner, group in zip(owners, groups, strict=True):
            for number, encoded in enumerate(group):
                side = number if self._task == "preference" else 0
                place = _window(encoded.loss_mask, self._limit)
                ids, loss_mask = encoded.ids[place], encoded.loss_mask[place]
                # Nothing predicts the first token of a window, either.
                found.append(Sequence(owner, side, ids, [0, *loss_mask[1:]], len(encoded.ids)))
        return found

    def _nats(self, sequences: list[Sequence], reporter: Reporter | None = None) -> np.ndarray:
        """Negative log-likelihood of the target tokens of each sequence, float64."""
        found = np.zeros(len(sequences))
        # Longest first: little padding, and what does not fit into memory fails at once.
        order = sorted(range(len(sequences)), key=lambda place: -len(sequences[place].ids))
        while order:
            size = self._fitting([sequences[place] for place in order])
            places, order = order[:size], order[size:]
            found[places] = self._batch_nats([sequences[place] for place in places])
            if reporter:
                done = len(sequences) - len(order)
                reporter.progress(stage="scoring", done=done, of=len(sequences))
        return found

    def _fitting(self, sequences: list[Sequence]) -> int:
        """How many of the first sequences go together."""
        width = len(sequences[0].ids)
        size = max(1, min(self._job.batch_size, _TOKENS_AT_ONCE[self._device] // width))
        if not self._linear:
            row = self._model.get_input_embeddings().weight.shape[0] * 4
            targets = np.cumsum([sum(sequence.loss_mask) for sequence in sequences[:size]])
            size = max(1, int(np.searchsorted(targets * row, _LOGIT_BYTES, side="right")))
        return size

    @torch.inference_mode()
    def _batch_nats(self, sequences: list[Sequence]) -> np.ndarray:
        width = max(len(sequence.ids) for sequence in sequences)
        # What follows an example changes nothing before it: attention only looks back.
        ids = np.zeros((len(sequences), width), np.int64)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence.ids)] = sequence.ids
        # A token is predicted from the place before it.
        places = [np.flatnonzero(sequence.loss_mask[1:]) for sequence in sequences]
        rows = np.repeat(np.arange(len(sequences)), [len(each) for each in places])
        columns = np.concatenate(places)
        picked = [torch.from_numpy(each).to(self._device) for each in (rows, columns)]
        targets = torch.from_numpy(ids[rows, columns + 1]).to(self._device)
        nats = self._token_nats(torch.from_numpy(ids).to(self._device), picked, targets)
        return np.bincount(rows, nats.double().cpu().numpy(), len(sequences))

    def _token_nats(
        self, ids: torch.Tensor, picked: list[torch.Tensor], targets: torch.Tensor
    ) -> torch.Tensor:
        rows, columns = picked
        head = self._model.get_output_embeddings()
        if self._linear:
            with causal.headless(self._model):
                hidden = self._model(input_ids=ids, use_cache=False).logits[rows, columns]
            return losses.head_losses(
                hidden, targets, head.weight, getattr(head, "bias", None)
            ).nats
        # Something comes after the head: the model makes the logits, of the picked places only.
        hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][rows, columns],))
        try:
            logits = self._model(input_ids=ids, use_cache=False).logits
        finally:
            hook.remove()
        return losses.logit_losses(logits, targets).nats

    def _preferences(
        self, owners: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, inputs: int
    ) -> dict[str, pa.Array]:
        likely = [torch.from_numpy(-nats) for nats in (chosen, rejected)]
        nothing = torch.zeros(len(owners), dtype=torch.float64)
        loss, margin = losses.preference_loss(*likely, nothing, nothing, self._job.beta)
        pairs = np.bincount(owners, minlength=inputs)
        right = (margin > 0).double()
        # What is not a number is neither right nor wrong.
        right[~torch.isfinite(margin)] = torch.nan
        return {
            name: pa.array(np.bincount(owners, values.numpy(), inputs) / pairs, pa.float64())
            for name, values in (("loss", loss), ("accuracy", right))
        }

    def _spoken(self, one: Input, text: str, *, written: bool) -> str:
        return encoder.strip_reasoning(
            self._tokenizer, one.examples[0], self._task, text, generated=written
        )

    def _prompt(self, one: Input) -> tuple[list[int], list[str]]:
        """What the model is given, and all references."""
        examples = [_halved(example) for example in one.examples]
        ids = encoder.encode_prompt(self._tokenizer, examples[0], self._task)
        references = [encoder.reference_answer(example, self._task) for example in examples]
        if not ids:
            ids = stop_token_ids(self._tokenizer)[:1]
        return ids[-self._room :], references


def load(job: ModelJob) -> torch.nn.Module:
    """Load the model of a job the way a consumer loads one of its kind.

    Raises:
        BadModel: It cannot be loaded.
    """
    # A CPU computes fp32, whatever the files hold: the weights are the same, and it is faster.
    dtype: torch.dtype | str = torch.float32 if job.device == "cpu" else "auto"
    if job.kind == "untrained":
        return causal.load_causal(job.base or job.model, dtype=dtype, device=job.device)
    if job.kind == "adapter":
        if job.quantization == "nf4" and job.device != "cpu":
            dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        base = causal.load_causal(
            job.base, dtype=dtype, quantization=job.quantization, device=job.device
        )
        with release_load_errors("PeftModel"):
            return released_model.put_adapter(base, job.model)
    try:
        return causal.load_causal(job.model, dtype=dtype, device=job.device)
    except BadModel as error:
        raise BadModel(
            "the model", error.found, error.expected, "start the run again: it is made anew"
        ) from error


def _window(loss_mask: list[int], limit: int) -> slice:
    """The tokens that are kept of a sequence; some of the answer, always."""
    if len(loss_mask) <= limit or 1 in loss_mask[1:limit]:
        return slice(0, limit)
    first = loss_mask.index(1, 1) if 1 in loss_mask[1:] else 0
    end = min(len(loss_mask), first + max(1, limit // 2))
    return slice(max(0, end - limit), end)


def _halved(example: dict[str, Any]) -> dict[str, Any]:
    """A text as a prompt and its completion, cut at the space nearest to its middle."""
    if "text" not in example:
        return example
    text = example["text"]
    middle = len(text) // 2
    spaces = [place for place, sign in enumerate(text) if sign.isspace()]
    cut = min(spaces, key=lambda place: abs(place - middle), default=middle)
    return {"prompt": text[:cut], "completion": text[cut:]}


def _table(examples: pa.Table, inputs: list[Input], columns: dict[str, pa.Array]) -> pa.Table:
    firsts = examples.take(pa.array([one.row for one in inputs], pa.int64()))
    table = {
        "hash_hi": firsts.column("hash_hi").cast(pa.uint64()),
        "hash_lo": firsts.column("hash_lo").cast(pa.uint64()),
        "label": pa.array([""] * len(inputs), pa.string()),
        **columns,
    }
    for name in examples.column_names:
        if name not in (*_OWN_COLUMNS, *table):
            table[name] = firsts.column(name).cast(pa.string())
    return pa.table(table)


if __name__ == "__main__":
    run(main, ScoreLanguageJob)
