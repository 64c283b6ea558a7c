"""Score a language model on each input, loaded the way a consumer loads it.

Job: `ScoreLanguageJob`. `examples` has the columns hash_hi, hash_lo, example, label, and the
columns to slice by; rows with equal hashes are one input with several answers. The model's own
chat template and tokenizer are used, unless the job names a tokenizer. Latency: if answers are
generated, prompts are answered one by one, and the latency is the median of the milliseconds per
token, including the reading of the prompt; otherwise it is the median of single calls, from text
to loss.

`scores.parquet` has a row for each distinct input, in the order of `examples`: hash_hi, hash_lo,
label, loss, tokens, length (of the longest example, before truncation), and the columns to slice by
as strings.

- completion, instruction: loss is the mean negative log-likelihood (nats) of the target tokens of
  all answers to the input, and tokens is their number.
- preference: accuracy is the share of the input's pairs whose chosen answer has the higher
  log-likelihood; loss is the mean of -log sigmoid(beta * (log p(chosen) - log p(rejected))). This
  is DPO's loss (Rafailov et al. 2023, arXiv:2305.18290, equation 7) with a reference model to which
  all answers are equally likely, so that a model can be scored alone. tokens counts all answers.
- if answers are generated: generated (greedy decoding, without the stop token and surrounding
  spaces), answer (the same without reasoning, if the chat template has reasoning; empty if the
  reasoning does not end), reference (the first one, without reasoning), and for the answer
  exact_match, token_f1, rouge_l (the best over all references) and checks (null without checks).

An example that is too long is truncated at its end, as in training; if that removed the whole
answer, its beginning is cut off instead. For a text without a prompt, the model continues its first
half.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from tasks.chat import encoder
from tasks.chat.stop_tokens import stop_token_ids, training_tokenizer
from tasks.contracts.errors import BadRecipe
from tasks.contracts.jobs import LossCheckJob, ScoreLanguageJob, ScoreResult
from tasks.evaluate import answer_metrics, release_check, released_model
from tasks.evaluate.generation import Generator
from tasks.evaluate.language_inputs import (
    Input,
    distinct_inputs,
    kept_tokens,
    score_table_of,
    with_prompt,
)
from tasks.models import causal
from tasks.runtime.program import Reporter, run
from tasks.training import losses

_WARM_UP_CALLS, _TIMED_CALLS = 2, 10
_TIMED_TOKENS = 32
# Tokens of one forward pass, including padding. A single example may have more.
_TOKENS_PER_BATCH = {"cpu": 4_096, "cuda": 32_768}
# Bytes of logits per batch, if they cannot be computed in chunks. A single example may have more.
LOGIT_BYTES = 2**29


class Sequence(NamedTuple):
    """Tokens whose likelihood is computed.

    Attributes:
        input: Number of the input.
        ids: Token ids, truncated to the model's length.
        loss_mask: 1 for target tokens, else 0.
        full_length: Tokens before truncation.
    """

    input: int
    ids: list[int]
    loss_mask: list[int]
    full_length: int


def main(job: ScoreLanguageJob, reporter: Reporter) -> ScoreResult:
    """See the module's description.

    Raises:
        BadModel: The model cannot be loaded, or its loss is not a number.
        BadRecipe: A check is not valid, or answers may be longer than the model's context.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    checks = answer_metrics.Checks(job.must_match, job.must_not_contain, job.json_schema)
    reporter.progress(always=True, stage="loading model")
    scorer = Scorer(job)
    examples = pq.read_table(job.examples, memory_map=True)
    inputs = distinct_inputs(examples)
    scorer.smoke_test(inputs)
    if job.check:
        reporter.progress(always=True, stage="checking the release")
        scorer.check_release(job.check, inputs)
    scores = scorer.likelihoods(inputs, reporter)
    if job.generate_tokens:
        scores |= scorer.answers(inputs, checks, reporter)
    reporter.progress(always=True, stage="writing scores")
    job.out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(score_table_of(examples, inputs, scores), job.out, compression="zstd")
    return ScoreResult(
        labels=(),
        size_bytes=released_model.size_of(job.model),
        milliseconds_per_example=scorer.latency(inputs) if job.measure_latency else None,
    )


class Scorer:
    """A language model with its tokenizer, loaded for scoring."""

    def __init__(self, job: ScoreLanguageJob) -> None:
        """Load model and tokenizer.

        Args:
            job: The program's job.

        Raises:
            BadModel: Model or tokenizer cannot be loaded.
            BadRecipe: Answers may be longer than the model's context.
        """
        self._job, self._task, self._device = job, job.task, job.device
        self._tokenizer = training_tokenizer(job.tokenizer or job.model)
        model = released_model.load_language_model(job).eval().requires_grad_(False)
        self._model = model.get_base_model() if job.kind == "adapter" else model
        config = self._model.config
        self._limit = released_model.token_limit(job.max_length, self._tokenizer, config)
        self._prompt_limit = released_model.positions_of(config) - job.generate_tokens
        if self._prompt_limit < 1:
            raise BadRecipe(
                "evaluation.generate_tokens",
                str(job.generate_tokens),
                f"fewer than the model's {released_model.positions_of(config)} positions",
                "ask for shorter answers",
            )
        stop_ids = stop_token_ids(self._tokenizer, self._model.generation_config)
        pad = self._tokenizer.pad_token_id
        self._generator = Generator(self._model, stop_ids, stop_ids[0] if pad is None else pad)
        self._linear = causal.head_is_linear(self._model, self._device)

    def smoke_test(self, inputs: list[Input]) -> None:
        """Compute the loss of one example, and one token of an answer.

        Raises:
            BadModel: The loss is not finite.
        """
        shortest = min(inputs, key=lambda one: len(str(one.examples[0])))
        found = self._nats(self._sequences([shortest]))
        if not np.isfinite(found).all():
            raise released_model.wrong_answer(
                "a loss that is not finite", "a finite loss of every token"
            )
        if self._job.generate_tokens:
            self._generator.generate([self._prompt(shortest)[0]], 1, 1)

    def check_release(self, check: LossCheckJob, inputs: list[Input]) -> None:
        """Check that the model is the one that was trained, and works for a consumer.

        Raises:
            BadModel: It is not, or does not.
        """
        rows = pq.read_table(check.examples).to_pylist()
        sequences = [
            Sequence(0, row["input_ids"], [0, *row["loss_mask"][1:]], len(row["input_ids"]))
            for row in rows
        ]
        targets = sum(sum(sequence.loss_mask) for sequence in sequences)
        loss = float(self._nats(sequences).sum()) / targets
        examples = len(rows) // 2 if self._task == "preference" else len(rows)
        release_check.check_loss(loss, check.loss, examples)
        some = [one.examples[0] for one in inputs[: release_check.CHECKED_TOKENS]]
        chat = self._task != "completion"
        shipped = AutoTokenizer.from_pretrained(self._job.model, trust_remote_code=False)
        release_check.check_tokens(
            [encoder.encode_prompt(self._tokenizer, one, self._task) for one in some],
            [release_check.served_tokens(shipped, one, chat) for one in some],
        )
        # An adapter ships without a generation configuration of its own: its base's is not tried.
        if self._job.kind == "merged":
            release_check.try_language_model(self._model, self._job.model, self._device, chat)

    def likelihoods(self, inputs: list[Input], reporter: Reporter) -> dict[str, pa.Array]:
        """Columns of the score table on the likelihood of the known answers."""
        sequences = self._sequences(inputs)
        nats = self._nats(sequences, reporter)
        owners = np.array([sequence.input for sequence in sequences])
        counts = np.array([sum(sequence.loss_mask) for sequence in sequences])
        tokens = np.bincount(owners, counts, len(inputs)).astype(np.int64)
        lengths = np.zeros(len(inputs), np.int64)
        np.maximum.at(lengths, owners, [sequence.full_length for sequence in sequences])
        sizes = {"tokens": pa.array(tokens, pa.int32()), "length": pa.array(lengths, pa.int32())}
        if self._task == "preference":
            return sizes | self._preferences(owners[::2], nats[::2], nats[1::2], len(inputs))
        # An input without target tokens has loss 0, and no weight in any mean.
        loss = np.bincount(owners, nats, len(inputs)) / np.maximum(tokens, 1)
        return {"loss": pa.array(loss, pa.float64()), **sizes}

    def answers(
        self, inputs: list[Input], checks: answer_metrics.Checks, reporter: Reporter
    ) -> dict[str, pa.Array]:
        """Columns of the score table on generated answers, and how they compare with references."""
        prompts = [self._prompt(one) for one in inputs]
        reporter.progress(always=True, stage="generating", done=0, of=len(inputs))
        generated = self._generator.generate(
            [prompt for prompt, _ in prompts],
            self._job.generate_tokens,
            self._job.batch_size,
            lambda done: reporter.progress(stage="generating", done=done, of=len(inputs)),
        )
        reporter.progress(always=True, stage="comparing")
        texts = [
            encoder.decode_answer(self._tokenizer, one.examples[0], self._task, answer.ids)
            for one, answer in zip(inputs, generated, strict=True)
        ]
        answers = [
            self._without_reasoning(one, text, generated=True)
            for one, text in zip(inputs, texts, strict=True)
        ]
        references = [
            [self._without_reasoning(one, text, generated=False) for text in known]
            for one, (_, known) in zip(inputs, prompts, strict=True)
        ]
        pairs = list(zip(answers, references, strict=True))
        measures: dict[str, Callable[[str, list[str]], float]] = {
            "exact_match": answer_metrics.exact_match,
            "token_f1": answer_metrics.token_f1,
            "rouge_l": answer_metrics.rouge_l,
        }
        return {
            "generated": pa.array(texts, pa.string()),
            "answer": pa.array(answers, pa.string()),
            "reference": pa.array([known[0] for known in references], pa.string()),
            **{
                name: pa.array([measure(*pair) for pair in pairs], pa.float64())
                for name, measure in measures.items()
            },
            "checks": pa.array([checks(text) for text in answers], pa.float64()),
        }

    def latency(self, inputs: list[Input]) -> float:
        """Median milliseconds per token, or per single call; see the module's description."""
        calls = min(_TIMED_CALLS, len(inputs)) + _WARM_UP_CALLS
        chosen = np.linspace(0, len(inputs) - 1, calls).astype(int).tolist()
        times = []
        for number in chosen:
            start = time.perf_counter()
            if self._job.generate_tokens:
                prompt, _ = self._prompt(inputs[number])
                tokens = min(self._job.generate_tokens, _TIMED_TOKENS)
                steps = self._generator.generate([prompt], tokens, 1)[0].steps
            else:
                self._nats(self._sequences([inputs[number]]))
                steps = 1
            times.append(1000 * (time.perf_counter() - start) / steps)
        return round(statistics.median(times[_WARM_UP_CALLS:]), 3)

    def _sequences(self, inputs: list[Input]) -> list[Sequence]:
        examples = [example for one in inputs for example in one.examples]
        numbers = [number for number, one in enumerate(inputs) for _ in one.examples]
        found = []
        groups = encoder.encode_examples(self._tokenizer, examples, self._task)
        for number, group in zip(numbers, groups, strict=True):
            for encoded in group:
                kept = kept_tokens(encoded.loss_mask, self._limit)
                ids, loss_mask = encoded.ids[kept], encoded.loss_mask[kept]
                # Nothing predicts the first token.
                found.append(Sequence(number, ids, [0, *loss_mask[1:]], len(encoded.ids)))
        return found

    def _nats(self, sequences: list[Sequence], reporter: Reporter | None = None) -> np.ndarray:
        """Negative log-likelihood of each sequence's target tokens, float64, shape (sequences,)."""
        found = np.zeros(len(sequences))
        # Longest first: little padding, and running out of memory shows at once.
        order = sorted(range(len(sequences)), key=lambda number: -len(sequences[number].ids))
        while order:
            size = self._batch_size([sequences[number] for number in order])
            batch, order = order[:size], order[size:]
            found[batch] = self._batch_nats([sequences[number] for number in batch])
            if reporter:
                done = len(sequences) - len(order)
                reporter.progress(stage="scoring", done=done, of=len(sequences))
        return found

    def _batch_size(self, sequences: list[Sequence]) -> int:
        """How many of the first sequences form a batch."""
        width = len(sequences[0].ids)
        size = max(1, min(self._job.batch_size, _TOKENS_PER_BATCH[self._device] // width))
        if not self._linear:
            row = self._model.get_input_embeddings().weight.shape[0] * 4
            targets = np.cumsum([sum(sequence.loss_mask) for sequence in sequences[:size]])
            size = max(1, int(np.searchsorted(targets * row, LOGIT_BYTES, side="right")))
        return size

    @torch.inference_mode()
    def _batch_nats(self, sequences: list[Sequence]) -> np.ndarray:
        width = max(len(sequence.ids) for sequence in sequences)
        # Padding on the right needs no mask: attention is causal.
        ids = np.zeros((len(sequences), width), np.int64)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence.ids)] = sequence.ids
        # A token is predicted from the position before it.
        positions = [np.flatnonzero(sequence.loss_mask[1:]) for sequence in sequences]
        rows = np.repeat(np.arange(len(sequences)), [len(each) for each in positions])
        columns = np.concatenate(positions)
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
        # The head is not the last operation, so the model computes logits, at the picked positions.
        hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][rows, columns],))
        try:
            logits = self._model(input_ids=ids, use_cache=False).logits
        finally:
            hook.remove()
        return losses.logit_losses(logits, targets).nats

    def _preferences(
        self, owners: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, inputs: int
    ) -> dict[str, pa.Array]:
        likelihoods = [torch.from_numpy(-nats) for nats in (chosen, rejected)]
        reference = torch.zeros(len(owners), dtype=torch.float64)
        loss, margin = losses.preference_loss(*likelihoods, reference, reference, self._job.beta)
        pairs = np.bincount(owners, minlength=inputs)
        right = (margin > 0).double()
        # A margin that is not a number is neither right nor wrong.
        right[~torch.isfinite(margin)] = torch.nan
        return {
            name: pa.array(np.bincount(owners, values.numpy(), inputs) / pairs, pa.float64())
            for name, values in (("loss", loss), ("accuracy", right))
        }

    def _without_reasoning(self, one: Input, text: str, *, generated: bool) -> str:
        return encoder.strip_reasoning(
            self._tokenizer, one.examples[0], self._task, text, generated=generated
        )

    def _prompt(self, one: Input) -> tuple[list[int], list[str]]:
        """The token ids of the prompt, and all references."""
        examples = [with_prompt(example) for example in one.examples]
        ids = encoder.encode_prompt(self._tokenizer, examples[0], self._task)
        references = [encoder.reference_answer(example, self._task) for example in examples]
        if not ids:
            ids = stop_token_ids(self._tokenizer)[:1]
        return ids[-self._prompt_limit :], references


if __name__ == "__main__":
    run(main, ScoreLanguageJob)
