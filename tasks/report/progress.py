"""Training progress, as log lines and a progress artifact."""

from __future__ import annotations

import time
from typing import Any

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.contracts.errors import BurnishError
from tasks.report.markdown import time_words
from tasks.runtime.logs import NOW, TICKS, run_logger
from tasks.runtime.prefect_api import BackgroundCall
from tasks.runtime.telling import tell_training

SECONDS_BETWEEN_UPDATES = 2.0
SECONDS_BETWEEN_LOGS = 10.0
_LAST_WRITE_SECONDS = 5.0


class TrainingProgress:
    """Shows the progress lines of a training program.

    Attributes:
        tokens_per_second: The last one reported; 0 before.
    """

    def __enter__(self) -> TrainingProgress:
        self._artifact = None
        self._writing = BackgroundCall()
        self.tokens_per_second = 0.0
        self._shown = self._logged = 0.0
        self._first: tuple[float, int] | None = None
        self._line: dict[str, Any] = {}
        self._history: list[dict[str, float]] = []
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, *_: object
    ) -> None:
        if isinstance(failure, BurnishError):
            failure.history = self._history
        elif self._shown and failure is None:
            self.show_bar(100.0)
        self._writing.flush(_LAST_WRITE_SECONDS)

    def update(self, line: dict[str, Any]) -> None:
        """Show one progress line of the training program."""
        self.tokens_per_second = line.get("tokens_per_second") or self.tokens_per_second
        if "step" in line and ("loss" in line or "eval_loss" in line):
            self._history.append(line)
        if not line.get("steps"):
            return
        now = time.monotonic()
        self._first = self._first or (now, line["step"])
        # Not every line has every figure: the last one of each counts.
        self._line |= line
        if line.get("stage") == "stopping" or now - self._shown <= SECONDS_BETWEEN_UPDATES:
            return
        self._shown = now
        sentence = f"Training: {progress_sentence(self._line, self._seconds_left(now))}."
        tell_training(sentence, self._history)
        TICKS.info(sentence, extra=NOW)
        self.show_bar(100.0 * line["step"] / line["steps"])
        if now - self._logged > SECONDS_BETWEEN_LOGS:
            self._logged = now
            run_logger().info(sentence)

    def _seconds_left(self, now: float) -> float | None:
        """At the speed since the training began, or went on."""
        began, first_step = self._first or (now, 0)
        done = self._line["step"] - first_step
        if not done:
            return None
        return (now - began) / done * (self._line["steps"] - self._line["step"])

    def show_bar(self, percent: float) -> None:
        """Show how much is done, as a progress bar on the run's page."""
        # The caller follows the training program: it must not wait for the API.
        self._writing.submit(lambda: self._write(percent))

    def _write(self, percent: float) -> None:
        try:
            if self._artifact is None:
                self._artifact = create_progress_artifact(percent, description="Training")
            else:
                update_progress_artifact(self._artifact, percent)
        except Exception as error:
            run_logger().debug("could not show the progress: %s", error)


def progress_sentence(line: dict[str, Any], seconds_left: float | None = None) -> str:
    """How far a training is: `step 42 of 100, about 3.0 minutes left, loss 0.3141`.

    Args:
        line: The last figures of the training program.
        seconds_left: Until its last step; None if nobody knows.
    """
    names = {
        "loss": "loss {:.4f}",
        "eval_loss": "validation loss {:.4f}",
        "eval_accuracy": "accuracy {:.4f}",
        "tokens_per_second": "{:,.0f} tokens/s",
        "gpu_memory_mb": "at most {:,.0f} MB of GPU memory",
        "process_memory_mb": "at most {:,.0f} MB of memory",
    }
    parts = [f"step {line.get('step', 0)} of {line.get('steps', '?')}"]
    parts += ["validation"] if line.get("stage") == "validation" else []
    parts += [f"about {time_words(seconds_left)} left"] if seconds_left is not None else []
    parts += [text.format(line[name]) for name, text in names.items() if line.get(name) is not None]
    return ", ".join(parts)
