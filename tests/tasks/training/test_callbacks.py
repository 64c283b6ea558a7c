"""The best epoch is kept, and training stops early or at a bad loss."""

import math
from types import SimpleNamespace

import pytest
from transformers import TrainerControl

from tasks.contracts.errors import TrainingDiverged
from tasks.models import adapter as adapter_
from tasks.training import callbacks
from tasks.training.callbacks import training_arguments


class TestBestEpoch:
    @pytest.fixture
    def rate(self, tmp_path, monkeypatch):
        """Feeds epochs to `BestEpoch`; returns it and the epoch that stopped training."""
        monkeypatch.setattr(adapter_, "save_adapter", lambda model, file: file.write_text(model))

        def rate(values, metric="accuracy", patience=0):
            best = callbacks.BestEpoch(tmp_path / "best", metric, patience, None)
            for epoch, value in enumerate(values, start=1):
                control = TrainerControl()
                found = dict.fromkeys(("eval_precision", "eval_recall", "eval_f1"), 0.5)
                found |= {"eval_accuracy": 0.5, "eval_loss": 1.0, f"eval_{metric}": value}
                found["eval_check_loss"] = 1.0
                state = SimpleNamespace(epoch=float(epoch), global_step=epoch)
                best.on_evaluate(None, state, control, found, f"weights of {epoch}")
                if control.should_training_stop:
                    return best, epoch
            return best, None

        return rate

    def test_is_kept(self, rate):
        best, _ = rate([0.5, 0.9, 0.7])
        assert best.epoch == 2.0
        assert best.adapter.read_text() == "weights of 2"

    def test_is_the_first_of_equal_epochs(self, rate):
        assert rate([0.9, 0.9])[0].epoch == 1.0

    def test_by_loss_is_the_lowest(self, rate):
        assert rate([0.9, 0.3, 0.5], metric="loss")[0].epoch == 2.0

    def test_training_stops_after_epochs_without_improvement(self, rate):
        best, stopped = rate([0.5, 0.9, 0.8, 0.9, 0.95], patience=2)
        assert (best.epoch, stopped, best.ended) == (2.0, 4, True)


class TestValidationLoss:
    def test_that_is_not_finite_stops_training(self, tmp_path):
        best = callbacks.BestEpoch(tmp_path / "best", "accuracy", 0, None)
        state = SimpleNamespace(epoch=1.0, global_step=9)
        found = {f"eval_{name}": 0.5 for name in ("accuracy", "precision", "recall", "f1")}
        with pytest.raises(TrainingDiverged, match="validation loss nan"):
            best.on_evaluate(None, state, TrainerControl(), found | {"eval_loss": math.nan}, None)


class TestWarmUp:
    @pytest.mark.parametrize(
        ("examples", "warmup", "steps"),
        [(16, 0.06, 0), (256, 0.06, 0), (272, 0.06, 1), (1600, 0.06, 6), (32, 0.5, 1)],
    )
    def test_is_rounded_down_so_that_a_short_training_moves(self, lm_job, examples, warmup, steps):
        training = {"warmup": warmup, "batch_size": 16, "epochs": 1}
        arguments = training_arguments(lm_job(training=training), examples)
        assert arguments.warmup_steps == steps
