"""Train language models on texts, prompts and conversations.

Examples are packed without padding and attend to themselves only. The head is computed for target
tokens only. The loss of a step is the mean over the target tokens of the whole step, however the
step is cut into micro-batches and distributed over processes.
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
from tasks.training.callbacks import diverged, training_arguments
from tasks.training.checkpoints import saved_state
from tasks.training.forward import Forward
from tasks.training.language_batches import Batch, Example, TokenExamples, gather_tokens, make_batch
from tasks.training.loss_check import target_sums, write_sequences
from tasks.training.micro_batches import Steps, fill, in_order

CPU_TOKENS = 4096
_MIN_TOKENS, _MAX_TOKENS = 1024, 65536
# Share of a GPU's free memory: the rest is for chunks of logits, gradients and fragmentation.
_SHARE_OF_MEMORY = 0.6
# Activations that a layer keeps per token for the backward pass, roughly: so many of the hidden
# size, and so many of the intermediate size.
_HIDDEN_KEPT, _INTERMEDIATE_KEPT = 16, 6


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
        """The examples of a split, gathered into a file."""
        job = self._job

        def gathered(now: bool) -> TokenExamples:
            if not now:
                return TokenExamples(file, 2 if self.pairs else 1)
            return gather_tokens(job.shards, job.keep_file, split, file, self.pairs)

        return distributed.main_process_first(gathered)

    def model(self, merging: bool = False) -> Any:
        """The base with a new adapter.

        An adapter trained on a quantized base fits that base's rounded weights in their compute
        dtype: merged into other weights it gives another model.

        Args:
            merging: Whether to prepare for merging: the base is dequantized, in host memory.
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
        """The Trainer for a model."""
        job, plan = self._job, self._job.plan
        forward = Forward(model.get_base_model(), plan, self.warnings)
        if plan.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if plan.compile:
            _compile(model.get_base_model(), self.warnings)
        longest = max(train.widest, validation.widest)
        saved = saved_state(job.resume_from)
        # On a GPU it depends on the free memory, which may be other when a training goes on.
        budget = (
            saved.first_budget
            if saved
            else job.micro_batch_tokens
            or token_budget(model.get_base_model(), plan, longest, job.max_micro_batch_tokens)
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
        trainer.halve(job.halvings)
        return trainer

    def merge(self, model: Any) -> PreTrainedModel:
        """Merge the adapter into its base, in the dtype of the base's files."""
        merged = merge(model, weights.stored_dtype(self._job.base))
        self._set_generation_config(merged)
        return merged

    def write_check(self, validation: TokenExamples, file: Path) -> None:
        """Write the examples of the loss check."""
        write_sequences(validation, file)

    def finish(self, model: Any, out: Path) -> None:
        """Write the files that ship with the weights."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._set_generation_config(base)
        base.generation_config.save_pretrained(out)
        classifier.save_tokenizer(self._tokenizer(), out, self._job.training.max_length)
        adapter.make_readable(out)

    def _trainer_class(self) -> type[LanguageTrainer]:
        return LanguageTrainer

    def _tokenizer(self) -> Any:
        return training_tokenizer(self._job.tokenizer)

    def _set_generation_config(self, model: PreTrainedModel) -> None:
        tokenizer = self._tokenizer()
        ends = stop_token_ids(tokenizer, model.generation_config)
        causal.set_generation_config(model, ends, tokenizer.pad_token_id)

    def _arguments(self, examples: int) -> Any:
        job = self._job
        return training_arguments(
            job,
            examples,
            per_device_train_batch_size=-(-job.training.batch_size // ranks.count()),
            # `Forward` applies autocast, to the forward pass only.
            bf16=False,
            dataloader_pin_memory=False,
        )


class LanguageTrainer(Trainer):
    """A Trainer that cuts steps into micro-batches by tokens and stops at a non-finite loss.

    Attributes:
        first_budget, budget: Tokens per micro-batch, at first and now.
        batch_size: Examples per step, over all processes.

    Args:
        forward: Computes the losses of a batch.
        budget: Initial tokens per micro-batch; halved when device memory runs out.
        warnings: Receives warnings for the report.
        **options: Options of the Trainer.
    """

    batch_size: int

    def __init__(self, forward: Forward, budget: int, warnings: list[str], **options: Any) -> None:
        super().__init__(data_collator=_no_collation, **options)
        self.forward, self._warnings = forward, warnings
        self.first_budget = self.budget = budget
        # Computed, and not counted, while other processes have more micro-batches.
        self._filler = self.train_dataset[int(self.train_dataset.lengths.argmin())]

    def get_train_dataloader(self) -> DataLoader:
        """A loader with one item per step: this process's examples of it."""
        steps = Steps(
            self.train_dataset.lengths,
            self.batch_size,
            self.args.seed,
            self.args.process_index,
            self.args.world_size,
        )
        return DataLoader(self.train_dataset, batch_sampler=steps, collate_fn=_no_collation)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the Trainer's estimate needs a collated batch."""
        return 0

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, list[Example]], *_: Any, **__: Any
    ) -> torch.Tensor:
        """Run the forward and backward passes of a whole step.

        Returns:
            This process's share of the step's mean loss, times the number of processes.

        Raises:
            TrainingDiverged: The loss is not finite.
        """
        model.train()
        examples = inputs["examples"]
        while (loss := self._try_step(model, examples)) is None:
            self.halve()
            self._warnings.append(
                f"device memory was too small: micro-batches of {self.budget} tokens from step "
                f"{self.state.global_step + 1} on"
            )
        value = float(loss)
        if not math.isfinite(value):
            raise diverged(f"loss {value} at step {self.state.global_step + 1}")
        return loss

    def halve(self, times: int = 1) -> None:
        """Make micro-batches half as large as they are now, so many times."""
        self.budget = max(self.budget >> times, 1)

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Metrics of the validation split; only sums are kept in memory."""
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        total = torch.zeros(6, dtype=torch.float64, device=self.args.device)
        for batch in self.batches(data):
            total += self._sums(batch)
            self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        if self.forward.sharded:
            distributed.reshard(self.model)
        *sums, check_nats, check_tokens = self.accelerator.reduce(total, "sum").tolist()
        metrics = self._metrics(sums) | {"check_loss": check_nats / check_tokens}
        found = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict or adapter.unsharded_state(self.model))

    def batches(self, data: TokenExamples) -> Iterator[Batch]:
        """This process's batches of a split, the longest first."""
        self.model.eval()
        parts = list(in_order(data.lengths, self.budget, self.forward.packing))
        rank, count = self.args.process_index, self.args.world_size
        for numbers in parts[rank::count]:
            yield self._batch([data[number] for number in numbers])
        if self.forward.sharded and rank >= (len(parts) % count or count):
            # A sharded layer needs all processes: this one takes part without a batch of its own.
            self.forward(self.model, self._batch([self._filler]))

    def _try_step(self, model: torch.nn.Module, examples: list[Example]) -> torch.Tensor | None:
        """The loss of a step; None if memory was too small and a smaller budget may help."""
        on_gpu = self.args.device.type == "cuda"
        draws = torch.cuda.get_rng_state() if on_gpu else None
        try:
            return self._step(model, examples)
        except torch.OutOfMemoryError:
            # Other processes wait for this one and cannot repeat the step.
            if self.args.world_size > 1 or self.budget <= max(each.widest for each in examples):
                raise
        # Outside the handler, which would keep the tensors of the failed pass alive.
        model.zero_grad()
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.set_rng_state(draws)
        return None

    def _step(self, model: torch.nn.Module, examples: list[Example]) -> torch.Tensor:
        parts = fill(examples, self.budget, self.forward.packing)
        denominator, tokens, count = self._totals(examples, len(parts))
        self.state.num_input_tokens_seen += tokens
        own = len(parts)
        parts += [[self._filler]] * (count - own)
        total = torch.zeros((), device=self.args.device)
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            # Read by the hook that reduces an adapter's gradients on a sharded model.
            self.accelerator.gradient_state._set_sync_gradients(last)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                loss = self.batch_loss(model, self._batch(part)) / denominator
                if number >= own:
                    loss = loss * 0.0
                # Gradients are averaged over processes, but must be summed.
                self.accelerator.backward(loss * self.args.world_size)
            total += loss.detach()
        return total * self.args.world_size

    def _totals(self, examples: list[Example], parts: int) -> tuple[float, int, int]:
        """Over all processes: the loss denominator, tokens, and the maximum of micro-batches."""
        own = [self._denominator(examples), sum(example.tokens for example in examples), parts]
        if self.args.world_size == 1:
            return float(own[0]), own[1], own[2]
        table = self.accelerator.gather(torch.tensor([own], device=self.args.device))
        denominator, tokens, _ = table.sum(0).tolist()
        return float(denominator), tokens, int(table[:, 2].max())

    def _batch(self, examples: list[Example]) -> Batch:
        return make_batch(examples, self.forward.packing, str(self.args.device))

    # A trainer with another loss overrides the following methods.

    def _denominator(self, examples: list[Example]) -> int:
        """The denominator of a step's loss: here its target tokens."""
        return sum(int(part.loss_mask[1:].sum()) for each in examples for part in each.parts)

    def batch_loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The sum of a batch's losses."""
        return self.forward(model, batch).nats.sum()

    def _sums(self, batch: Batch) -> torch.Tensor:
        """The numbers that are summed over the validation split: four for `_metrics`, and two of
        `target_sums`."""
        nats, right = self.forward(self.model, batch, predict=True)
        count = nats.new_tensor(len(nats), dtype=torch.float64)
        sums = torch.stack([nats.double().sum(), right.double().sum(), count, count * 0])
        return torch.cat([sums, target_sums(nats, batch.sequence_ids, batch.numbers, 1)])

    def _metrics(self, sums: list[float]) -> dict[str, float]:
        nats, right, count, _ = sums
        loss = nats / count
        # The exponential of a larger loss overflows.
        perplexity = math.exp(min(loss, 700.0)) if math.isfinite(loss) else loss
        return {"loss": loss, "perplexity": perplexity, "accuracy": right / count}


def _no_collation(examples: list[Example]) -> dict[str, list[Example]]:
    return {"examples": examples}


def token_budget(base: PreTrainedModel, plan: Plan, longest: int, most: int) -> int:
    """Tokens per micro-batch that fit into memory, and at most as many as the forecast.

    Args:
        base: The model; not read on a CPU.
        plan: The plan.
        longest: Tokens of the longest example, which must fit.
        most: Tokens that the forecast found to fit; 0 if there is no forecast.
    """
    if plan.device == "cpu":
        return max(min(CPU_TOKENS, most or CPU_TOKENS), longest)
    config = base.config.get_text_config()
    hidden, layers = config.hidden_size, config.num_hidden_layers
    intermediate = getattr(config, "intermediate_size", None) or 4 * hidden
    layer = _HIDDEN_KEPT * hidden + _INTERMEDIATE_KEPT * intermediate
    numbers = layer + layers * hidden if plan.checkpointing else layers * layer
    free, _ = torch.cuda.mem_get_info()
    fitting = int(_SHARE_OF_MEMORY * free / (numbers * (2 if plan.precision == "bf16" else 4)))
    picked = min(_MAX_TOKENS, max(_MIN_TOKENS, fitting // 256 * 256))
    return max(longest, min(picked, most or picked))


def _compile(base: PreTrainedModel, warnings: list[str]) -> None:
    layers = causal.decoder_layers(base)
    if layers is None:
        warnings.append("the model was not compiled: its decoder layers were not found")
        return
    for layer in layers:
        # Dynamic shapes: every micro-batch has a different number of tokens.
        layer.compile(dynamic=True)
