"""Save checkpoints of a training, and go on from one as if nothing had happened.

A checkpoint is a folder with the Trainer's files (adapter, optimizer, schedule, random states,
its own state), the best epoch so far, and `training.json`, which holds what the Trainer does not
save: how steps are cut into micro-batches, and the warnings so far. A file `complete` is written
last.

It is saved every few minutes, at the end of each epoch before its evaluation, and when the program
is asked to stop. The Trainer, resumed at the end of an epoch, would skip that epoch's evaluation:
`Resumed` does what the checkpoint says is owed.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tasks.contracts.base import Contract
from tasks.contracts.errors import Preempted, preempted
from tasks.models import distributed
from tasks.runtime import ranks
from tasks.training.callbacks import BestEpoch, peak_memory

if TYPE_CHECKING:
    from tasks.runtime.program import Reporter

_COMPLETE = "complete"
_STATE = "training.json"
# A pickle, with paths of this machine; nothing reads it.
_TRAINING_ARGUMENTS = "training_args.bin"


class SavedState(Contract):
    """What a checkpoint holds besides the Trainer's own files.

    Attributes:
        evaluation_owed: Whether the epoch that ends with this step was not evaluated yet.
        first_budget, budget: Tokens per micro-batch of a language model, at first and now; 0 for a
            classifier.
        loss_since_log: Sum of the losses of the steps since the last log entry.
        last_logged_step: Step of the last log entry.
        warnings: Warnings about the training so far.
    """

    evaluation_owed: bool
    first_budget: int = 0
    budget: int = 0
    loss_since_log: float
    last_logged_step: int
    warnings: tuple[str, ...] = ()


def complete_checkpoint(folder: Path | None) -> Path | None:
    """The checkpoint to resume from; None if there is none or it is incomplete."""
    return folder if folder and (folder / _COMPLETE).is_file() else None


def saved_state(folder: Path | None) -> SavedState | None:
    """What a checkpoint says of the training; None without a complete checkpoint."""
    if complete_checkpoint(folder) is None:
        return None
    return SavedState.model_validate_json((folder / _STATE).read_bytes())


class EndedEarly(Exception):
    """The evaluation that a checkpoint owed ends the training: no step must follow."""


class Resumed(TrainerCallback):
    """Restores what the Trainer does not, and does the evaluation that is owed.

    Attributes:
        trainer: The Trainer, set before it trains.

    Args:
        saved: From the checkpoint.
        best: The best epoch so far.
        halvings: How often micro-batches are halved from there on.
    """

    trainer: Trainer

    def __init__(self, saved: SavedState, best: BestEpoch, halvings: int) -> None:
        self._saved, self._best, self._halvings = saved, best, halvings

    def on_train_begin(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        """Restore, then evaluate.

        Raises:
            EndedEarly: There were too many epochs without improvement.
        """
        trainer, saved = self.trainer, self._saved
        if saved.budget:
            trainer.budget = saved.budget
            trainer.halve(self._halvings)
        # Otherwise the first log entry would be the mean of the steps since the checkpoint only.
        trainer._tr_loss += saved.loss_since_log
        trainer._globalstep_last_logged = saved.last_logged_step
        if saved.evaluation_owed:
            trainer.evaluate()
            if self._best.ended:
                raise EndedEarly


# The losses of a long training are logged less often.
_TELL_SECONDS = 5.0


class Checkpoints(TrainerCallback):
    """Saves checkpoints, stops on request, and reports progress.

    Attributes:
        trainer: The Trainer, set before it trains. None while it is made, which may take a pass
            over the data.
        stopped: Whether the training ended because the program was asked to stop.

    Args:
        reporter: Receives progress, and knows whether a stop was requested.
        best: The best epoch so far, which is reported too.
        minutes: Between two checkpoints within an epoch.
        stop_seconds: How long a request to stop leaves for saving one.
        warnings: Warnings about the training so far.
    """

    trainer: Trainer | None = None

    def __init__(
        self,
        reporter: Reporter,
        best: BestEpoch,
        minutes: float,
        stop_seconds: float,
        warnings: list[str],
    ) -> None:
        self._reporter, self._best, self._warnings = reporter, best, warnings
        self._seconds, self._stop_seconds = 60 * minutes, stop_seconds
        self._stopping = self.stopped = False
        self._saved = self._began = self._asked = time.monotonic()
        self._told = self._began
        self._saving_took = 0.0
        self._saved_step = 0
        self._tokens_before = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any
    ) -> None:
        """Report where the training begins."""
        self._saved = self._began = time.monotonic()
        self._saved_step = state.global_step
        self._tokens_before = state.num_input_tokens_seen
        self._reporter.progress(
            always=True, stage="training", step=state.global_step, steps=state.max_steps
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for a checkpoint if one is due, and stop if the program was asked to."""
        self._reporter.advance()
        if time.monotonic() - self._told > _TELL_SECONDS:
            self._tell(state)
        due = time.monotonic() - self._saved > self._seconds
        too_slow = self._saving_took > self._stop_seconds
        due, too_slow = self._agree(args, due, too_slow)
        if self._stopping:
            control.should_training_stop = self.stopped = True
        if due or _ends_epoch(state) or (self._stopping and not too_slow):
            self._asked = time.monotonic()
            control.should_save = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Report loss and speed."""
        entry = state.log_history[-1]
        if "loss" not in entry:
            return
        self._tell(state, loss=entry["loss"], learning_rate=entry["learning_rate"])

    def _tell(self, state: TrainerState, **figures: float) -> None:
        """Report how far the training is."""
        now = time.monotonic()
        tokens = state.num_input_tokens_seen - self._tokens_before
        self._told = now
        self._reporter.progress(
            stage="training",
            step=state.global_step,
            steps=state.max_steps,
            epoch=round(state.epoch, 3),
            **figures,
            tokens_per_second=round(tokens / max(now - self._began, 1e-3), 1),
            **peak_memory(),
        )

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Leave out the evaluation if the program was asked to stop: the checkpoint owes it."""
        self._agree(args)
        if self._stopping:
            control.should_training_stop = self.stopped = True
        if self.stopped:
            control.should_evaluate = False

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any
    ) -> None:
        """Abandon an evaluation if the program was asked to stop: the checkpoint owes it. Several
        processes do not: those that have not heard of the request yet would wait for the others.

        Raises:
            Preempted: It was.
        """
        self._reporter.advance()
        if time.monotonic() - self._told > _TELL_SECONDS:
            self._told = time.monotonic()
            self._reporter.progress(
                stage="validation", step=state.global_step, steps=state.max_steps
            )
        if self._reporter.stopping and ranks.count() == 1:
            raise self.preempted()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **_: Any,
    ) -> None:
        """Report the metrics of an epoch."""
        found = {f"eval_{name}": metrics[f"eval_{name}"] for name in self._best.names}
        self._reporter.progress(
            always=True,
            stage="training",
            step=state.global_step,
            steps=state.max_steps,
            epoch=round(state.epoch, 3),
            best_epoch=self._best.epoch,
            **peak_memory(),
            **found,
        )

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Complete a checkpoint whose files the Trainer has written, and report it."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        # Each process writes files of its own into it.
        distributed.barrier()
        if ranks.rank() == 0:
            self._best.copy_to(folder / "best")
            (folder / _TRAINING_ARGUMENTS).unlink(missing_ok=True)
            (folder / _STATE).write_text(self._state(state).model_dump_json())
            # Written last: a checkpoint without this file is incomplete.
            (folder / _COMPLETE).touch()
        # Without this, a process that exits would end the main process before it has finished.
        distributed.barrier()
        self._saved = time.monotonic()
        self._saving_took = self._saved - self._asked
        self._saved_step = state.global_step
        self._reporter.progress(
            always=True,
            stage="training",
            step=state.global_step,
            steps=state.max_steps,
            checkpoint=str(folder),
        )

    def preempted(self) -> Preempted:
        """The error for a training that was asked to stop."""
        if self.trainer is None:
            return preempted("before its first step")
        step = self.trainer.state.global_step
        if self._saved_step == step:
            return preempted(f"a checkpoint of step {step} was saved")
        return preempted(
            f"at step {step}; saving a checkpoint takes {self._saving_took:.0f} s, and there were "
            f"{self._stop_seconds:.0f} s, so that of step {self._saved_step} is the newest"
        )

    def _state(self, state: TrainerState) -> SavedState:
        trainer = self.trainer
        return SavedState(
            evaluation_owed=_ends_epoch(state),
            first_budget=getattr(trainer, "first_budget", 0),
            budget=getattr(trainer, "budget", 0),
            loss_since_log=float(trainer._tr_loss),
            last_logged_step=trainer._globalstep_last_logged,
            warnings=tuple(self._warnings),
        )

    def _agree(self, args: TrainingArguments, *flags: bool) -> list[bool]:
        """Agree with the other processes on stopping, and on these flags."""
        # The agreed value is stored: the others do not know of a request that arrives later.
        *agreed, self._stopping = distributed.any_process(
            [*flags, self._reporter.stopping], args.device
        )
        return agreed


def _ends_epoch(state: TrainerState) -> bool:
    return math.isclose(state.epoch, round(state.epoch), abs_tol=1e-9)
