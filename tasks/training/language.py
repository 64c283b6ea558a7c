"""What is particular to training language models on text, prompts and chats.

Examples lie one behind the other, without padding, and do not see each other; the head is only
computed where a token is learnt; and the loss of a step is the mean over the learnt tokens of the
whole step, however it was cut into micro-batches and dealt out to processes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback

from tasks.chat.stop_tokens import stop_token_ids, training_tokenizer
from tasks.contracts.jobs import FinetuneJob
from tasks.contracts.plan import Plan
from tasks.models import adapter, causal, classifier, distributed, liger, weights
from tasks.models.merge import dequantize_to_host, merge, merge_device
from tasks.runtime import ranks
from tasks.training.callbacks import arguments, diverged
from tasks.training.forward import Forward
from tasks.training.language_batches import Batch, Example, TokenExamples, gather_tokens, make_batch
from tasks.training.micro_batches import Steps, fill, in_order

_CPU_TOKENS = 4096
_LEAST_TOKENS, _MOST_TOKENS = 1024, 65536
# Of the free memory of a GPU: the rest is for the logits' chunk, for gradients and for gaps.
_SHARE_OF_MEMORY = 0.6
# Numbers that a layer keeps for the backward pass, a token: about so many hidden states, and so
# many of the size between.
_HIDDEN_KEPT, _BETWEEN_KEPT = 16, 6


class Language:
    """The tasks `completion` and `instruction`: see `tasks.finetune.program.Task`.

    Args:
        job: The program's job.
    """

    names: tuple[str, ...] = ("loss", "perplexity", "accuracy")
    pairs = False

    def __init__(self, job: FinetuneJob) -> None:
        self.warnings: list[str] = []
        self._job = job

    def examples(self, split: str, file: Path) -> TokenExamples:
        """The examples of a split, in a file that is made for them."""
        job = self._job

        def gathered(now: bool) -> TokenExamples:
            if not now:
                return TokenExamples(file, 2 if self.pairs else 1)
            return gather_tokens(job.shards, job.keep_file, split, file, self.pairs)

        return distributed.main_process_first(gathered)

    def model(self, merging: bool = False) -> Any:
        """Base and new adapter: as it trains, or on the dequantized base in host memory, to be
        merged.

        An adapter that was trained on a quantized base belongs to that base's rounded weights, in
        the number format that they were computed in: merged into others it is another model.
        """
        job, plan = self._job, self._job.plan
        dtype, device = weights.DTYPES[plan.precision], plan.device
        if merging:
            device = merge_device(device, job.quantization)
        base = causal.load_causal(
            job.base,
            dtype=dtype,
            quantization=job.quantization,
            device=device,
            attention=plan.attention,
            shards=plan.world_size if plan.sharding == "fsdp" else 1,
        )
        if merging:
            base = dequantize_to_host(base, dtype)
        elif plan.kernels == "liger":
            liger.apply_liger(base, device)
        return causal.attach_lora(base, job.lora, job.training.seed)

    def trainer(
        self,
        model: Any,
        train: TokenExamples,
        validation: TokenExamples,
        callbacks: list[TrainerCallback],
    ) -> LanguageTrainer:
        """What trains the model."""
        job, plan = self._job, self._job.plan
        forward = Forward(model.get_base_model(), plan, self.warnings)
        if plan.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if plan.compile:
            _compile(model.get_base_model(), self.warnings)
        longest = max(train.widest, validation.widest)
        budget = job.micro_batch_tokens or _budget(
            model.get_base_model(), plan, longest, job.max_micro_batch_tokens
        )
        trainer = self._trainer_class()(
            forward,
            budget,
            self.warnings,
            model=model,
            args=self._arguments(len(train)),
            train_dataset=train,
            eval_dataset=validation,
            callbacks=callbacks,
        )
        trainer.batch_size = job.training.batch_size
        return trainer

    def merge(self, model: Any) -> PreTrainedModel:
        """Adapter and base as one model, in the number format of the base's files."""
        merged = merge(model, weights.stored_dtype(self._job.base))
        self._settle_generation(merged)
        return merged

    def finish(self, model: Any, out: Path) -> None:
        """Write what ships beside the weights."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._settle_generation(base)
        base.generation_config.save_pretrained(out)
        classifier.save_tokenizer(self._tokenizer(), out, self._job.training["max_length"])
        adapter.make_readable(out)

    def _trainer_class(self) -> type[LanguageTrainer]:
        return LanguageTrainer

    def _tokenizer(self) -> Any:
        return training_tokenizer(self._job.tokenizer)

    def _settle_generation(self, model: PreTrainedModel) -> None:
        tokenizer = self._tokenizer()
        ends = stop_token_ids(tokenizer, model.generation_config)
        causal.set_generation_config(model, ends, tokenizer.pad_token_id)

    def _arguments(self, examples: int) -> Any:
        job = self._job
        return arguments(
            job,
            examples,
            per_device_train_batch_size=-(-job.training.batch_size // ranks.count()),
            # `Forward` sees to it, around the forward pass alone.
            bf16=False,
            dataloader_pin_memory=False,
        )


class LanguageTrainer(Trainer):
    """A Trainer whose steps are cut into micro-batches by tokens, and that stops at a bad loss.

    Attributes:
        budget: Tokens of a micro-batch.
        batch_size: Examples of a step, of all processes together.

    Args:
        forward: Gives losses.
        budget: To begin with.
        warnings: Gets what a person should know.
        **options: As the Trainer's.
    """

    batch_size: int

    def __init__(self, forward: Forward, budget: int, warnings: list[str], **options: Any) -> None:
        super().__init__(data_collator=_as_they_are, **options)
        self.forward, self.budget, self._warnings = forward, budget, warnings
        # What a process does for company when others have more micro-batches.
        self._filler = self.train_dataset[int(self.train_dataset.lengths.argmin())]

    def get_train_dataloader(self) -> DataLoader:
        """One item a step: this process's examples of it."""
        steps = Steps(
            self.train_dataset.lengths,
            self.batch_size,
            self.args.seed,
            self.args.process_index,
            self.args.world_size,
        )
        return DataLoader(self.train_dataset, batch_sampler=steps, collate_fn=_as_they_are)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: it would need the batch in one piece."""
        return 0

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, list[Example]], *_: Any, **__: Any
    ) -> torch.Tensor:
        """Forward and backward passes of a whole step.

        Returns:
            This process's share of the step's mean loss, times the number of processes.

        Raises:
            TrainingDiverged: The loss is not finite.
        """
        model.train()
        examples = inputs["examples"]
        while (loss := self._attempt(model, examples)) is None:
            self.budget = max(self.budget // 2, 1)
            self._warnings.append(
                f"device memory was too small: {self.budget} tokens at once from step "
                f"{self.state.global_step + 1} on"
            )
        value = float(loss)
        if not math.isfinite(value):
            raise diverged(f"loss {value} at step {self.state.global_step + 1}")
        return loss

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Metrics of the validation split; all that is kept of a batch are a few sums."""
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        total = torch.zeros(4, dtype=torch.float64, device=self.args.device)
        for batch in self.batches(data):
            total += self._sums(batch)
        metrics = self._metrics(self.accelerator.reduce(total, "sum").tolist())
        found = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict or adapter.unsharded_state(self.model))

    def batches(self, data: TokenExamples) -> Iterator[Batch]:
        """This process's share of a split, the longest first."""
        self.model.eval()
        parts = list(in_order(data.lengths, self.budget, self.forward.packing))
        rank, count = self.args.process_index, self.args.world_size
        for numbers in parts[rank::count]:
            yield self._batch([data[number] for number in numbers])
        if self.forward.shared and rank >= (len(parts) % count or count):
            # For company: no process can compute a layer that it does not hold.
            self.forward(self.model, self._batch([self._filler]))

    def _attempt(self, model: torch.nn.Module, examples: list[Example]) -> torch.Tensor | None:
        """The loss of a step; None where memory was too small and less may do."""
        on_gpu = self.args.device.type == "cuda"
        draws = torch.cuda.get_rng_state() if on_gpu else None
        try:
            return self._step(model, examples)
        except torch.OutOfMemoryError:
            # Other processes wait for this one's share: they cannot be called back.
            if self.args.world_size > 1 or self.budget <= max(each.widest for each in examples):
                raise
        # Out of the handler: it would keep alive what the failed pass had made.
        model.zero_grad()
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.set_rng_state(draws)
        return None

    def _step(self, model: torch.nn.Module, examples: list[Example]) -> torch.Tensor:
        parts = fill(examples, self.budget, self.forward.packing)
        weight, tokens, count = self._of_all(examples, len(parts))
        self.state.num_input_tokens_seen += tokens
        own = len(parts)
        parts += [[self._filler]] * (count - own)
        total = torch.zeros((), device=self.args.device)
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            # Asked by what sums the gradients of an adapter on a shared model.
            self.accelerator.gradient_state._set_sync_gradients(last)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                loss = self._loss(model, self._batch(part)) / weight
                if number >= own:
                    loss = loss * 0.0
                # Gradients of several processes are averaged, and shall be summed.
                self.accelerator.backward(loss * self.args.world_size)
            total += loss.detach()
        return total * self.args.world_size

    def _of_all(self, examples: list[Example], parts: int) -> tuple[float, int, int]:
        """Over all processes: what the loss is divided by, tokens, and most micro-batches."""
        own = [self._weight(examples), sum(example.tokens for example in examples), parts]
        if self.args.world_size == 1:
            return float(own[0]), own[1], own[2]
        table = self.accelerator.gather(torch.tensor([own], device=self.args.device))
        weight, tokens, _ = table.sum(0).tolist()
        return float(weight), tokens, int(table[:, 2].max())

    def _batch(self, examples: list[Example]) -> Batch:
        return make_batch(examples, self.forward.packing, str(self.args.device))

    # What follows is all that another kind of loss has to say otherwise.

    def _weight(self, examples: list[Example]) -> int:
        """What the sum of a step's losses is divided by."""
        return sum(int(part.loss_mask[1:].sum()) for each in examples for part in each.parts)

    def _loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The sum of a batch's losses."""
        return self.forward(model, batch).nats.sum()

    def _sums(self, batch: Batch) -> torch.Tensor:
        """What is summed over the validation split, for `_metrics`: four numbers."""
        nats, right = self.forward(self.model, batch, predict=True)
        count = nats.new_tensor(len(nats), dtype=torch.float64)
        return torch.stack([nats.double().sum(), right.double().sum(), count, count * 0])

    def _metrics(self, sums: list[float]) -> dict[str, float]:
        nats, right, count, _ = sums
        loss = nats / count
        # Beyond it, the exponential is no number any more.
        perplexity = math.exp(min(loss, 700.0)) if math.isfinite(loss) else loss
        return {"loss": loss, "perplexity": perplexity, "accuracy": right / count}


def _as_they_are(examples: list[Example]) -> dict[str, list[Example]]:
    return {"examples": examples}


def _budget(base: PreTrainedModel, plan: Plan, longest: int, most: int) -> int:
    """Tokens of a micro-batch, by memory, and no more than was forecast to fit."""
    if plan.device == "cpu":
        return max(min(_CPU_TOKENS, most or _CPU_TOKENS), longest)
    config = base.config.get_text_config()
    hidden, layers = config.hidden_size, config.num_hidden_layers
    between = getattr(config, "intermediate_size", None) or 4 * hidden
    layer = _HIDDEN_KEPT * hidden + _BETWEEN_KEPT * between
    numbers = layer + layers * hidden if plan.checkpointing else layers * layer
    free, _ = torch.cuda.mem_get_info()
    fitting = int(_SHARE_OF_MEMORY * free / (numbers * (2 if plan.precision == "bf16" else 4)))
    picked = min(_MOST_TOKENS, max(_LEAST_TOKENS, fitting // 256 * 256))
    return max(longest, min(picked, most or picked))


def _compile(base: PreTrainedModel, warnings: list[str]) -> None:
    layers = causal.decoder_layers(base)
    if layers is None:
        warnings.append("the model was not compiled: its layers were not found")
        return
    for layer in layers:
        # Of any length: each micro-batch has another number of tokens.
        layer.compile(dynamic=True)
