"""Training progress, as log lines and a progress artifact."""

from __future__ import annotations

import time
from typing import Any

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.contracts.errors import BurnishError
from tasks.runtime.logs import run_logger
from tasks.runtime.prefect_api import BackgroundCall
from tasks.runtime.telling import tell

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
        self._history: list[dict[str, float]] = []
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, *_: object
    ) -> None:
        if isinstance(failure, BurnishError):
            failure.history = self._history
        elif self._shown and failure is None:
            self._show(100.0)
        self._writing.flush(_LAST_WRITE_SECONDS)

    def update(self, line: dict[str, Any]) -> None:
        """Show one progress line of the training program."""
        self.tokens_per_second = line.get("tokens_per_second") or self.tokens_per_second
        if "step" in line and ("loss" in line or "eval_loss" in line):
            self._history.append(line)
        now = time.monotonic()
        sentence = progress_sentence(line)
        epoch_ended = any(name.startswith("eval_") for name in line)
        if sentence and (epoch_ended or now - self._logged > SECONDS_BETWEEN_LOGS):
            self._logged = now
            if not tell(f"Training: {sentence}."):
                run_logger().info(sentence)
        if line.get("steps") and now - self._shown > SECONDS_BETWEEN_UPDATES:
            self._shown = now
            self._show(100.0 * line.get("step", 0) / line["steps"])

    def _show(self, percent: float) -> None:
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


def progress_sentence(line: dict[str, Any]) -> str:
    """A progress line of the training program as a sentence; empty if it has no figures."""
    names = {
        "loss": "loss {:.4f}",
        "learning_rate": "learning rate {:.2e}",
        "eval_loss": "validation loss {:.4f}",
        "eval_accuracy": "accuracy {:.4f}",
        "eval_f1": "F1 {:.4f}",
        "tokens_per_second": "{:.0f} tokens/s",
        "gpu_memory_mb": "at most {:.0f} MB of GPU memory",
        "process_memory_mb": "at most {:.0f} MB in the process, libraries included",
    }
    parts = [text.format(line[name]) for name, text in names.items() if line.get(name) is not None]
    if not parts:
        return ""
    return f"step {line.get('step', 0)} of {line.get('steps', '?')}: {', '.join(parts)}"
