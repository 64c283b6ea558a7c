"""A training that was interrupted goes on from its checkpoint as if nothing had happened."""

import json
import os
import pickle
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.contracts.errors import Preempted
from tasks.contracts.jobs import FinetuneResult
from tasks.finetune import program as finetune_program
from tasks.runtime.run_program import run_program
from tasks.training import callbacks
from tasks.training.checkpoints import Checkpoints
from tests.tasks.conftest import Notes, content


class Malicious:
    """Unpickled, it creates a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def checkpoints_of(notes):
    return [Path(line["checkpoint"]) for line in notes.lines if "checkpoint" in line]


def assert_resumed_like_whole(whole, job, stops):
    """Train a job at once, and an equal one that is stopped at these steps and goes on from its
    newest checkpoint, elsewhere."""
    expected = finetune_program.main(whole, Notes())
    for stop_at in stops:
        notes = Notes(stop_at=stop_at)
        with pytest.raises(Preempted, match="a checkpoint of step"):
            finetune_program.main(job, notes)
        moved = Path(f"{job.work}-elsewhere-{stop_at}")
        shutil.move(checkpoints_of(notes)[-1], moved)
        shutil.rmtree(job.work)
        job = job.model_copy(update={"resume_from": moved})
    assert finetune_program.main(job, Notes()) == expected
    assert content(job.out) == content(whole.out)


class TestInterruptedTraining:
    @pytest.mark.parametrize("ship", ["merged", "adapter"])
    def test_gives_the_same_bytes(self, train_job, ship):
        make = partial(train_job, ship=ship, lora={"dropout": 0.1})
        # Within the first epoch, and within the second.
        assert_resumed_like_whole(make(), make(), (2, 6))

    def test_gives_the_same_bytes_when_interrupted_before_an_evaluation(self, train_job):
        # At the ends of both epochs.
        assert_resumed_like_whole(train_job(), train_job(), (4, 8))

    @pytest.mark.parametrize(
        ("task", "quantization"), [("instruction", "nf4"), ("preference", "none")]
    )
    def test_gives_the_same_bytes_when_a_language_model_is_interrupted(
        self, lm_job, task, quantization
    ):
        make = partial(lm_job, task=task, quantization=quantization, lora={"dropout": 0.1})
        # Within the first epoch of 4 steps, and at the end of the training.
        assert_resumed_like_whole(make(), make(), (2, 8))

    def test_has_the_same_losses_if_interrupted_between_two_log_entries(
        self, train_job, monkeypatch
    ):
        monkeypatch.setattr(callbacks, "POINTS_IN_HISTORY", 2)
        assert_resumed_like_whole(train_job(), train_job(), (2,))

    def test_gives_the_same_bytes_when_stopped_during_an_evaluation(self, train_job, monkeypatch):
        notes = Notes()
        on_prediction_step = Checkpoints.on_prediction_step

        def stop(self, *args, **options):
            notes.stopping = True
            on_prediction_step(self, *args, **options)

        expected, job = finetune_program.main(whole := train_job(), Notes()), train_job()
        with monkeypatch.context() as patched:
            patched.setattr(Checkpoints, "on_prediction_step", stop)
            with pytest.raises(Preempted, match="a checkpoint of step 4 was saved"):
                finetune_program.main(job, notes)
        assert not any("eval_loss" in line for line in notes.lines)
        job = job.model_copy(update={"resume_from": checkpoints_of(notes)[-1]})
        assert finetune_program.main(job, Notes()) == expected
        assert content(job.out) == content(whole.out)

    def test_ends_early_if_the_evaluation_that_was_owed_says_so(self, train_job):
        training = {"epochs": 4, "early_stopping": 1, "learning_rate": 1e-9}
        expected = finetune_program.main(whole := train_job(training=training), Notes())
        assert expected.steps == 8
        assert_resumed_like_whole(whole, train_job(training=training), (8,))


class TestWithLessMemory:
    @pytest.mark.parametrize("kind", ["train_job", "lm_job"])
    def test_goes_on_with_smaller_micro_batches_to_almost_the_same_losses(self, request, kind):
        make = request.getfixturevalue(kind)
        expected = finetune_program.main(make(), Notes())
        job, notes = make(), Notes(stop_at=2)
        with pytest.raises(Preempted):
            finetune_program.main(job, notes)
        smaller = {"resume_from": checkpoints_of(notes)[-1], "halvings": 1}
        resumed = finetune_program.main(job.model_copy(update=smaller), Notes())
        assert resumed.steps == expected.steps
        losses = [
            [entry["loss"] for entry in run.history if "loss" in entry]
            for run in (expected, resumed)
        ]
        assert np.allclose(*losses, atol=0.02)


class TestCheckpoint:
    def test_ignores_an_incomplete_checkpoint(self, train_job, tmp_path):
        job = train_job(training={"epochs": 1}, resume_from=str(tmp_path / "half"))
        (tmp_path / "half").mkdir()
        (tmp_path / "half" / "trainer_state.json").write_text("{")
        assert finetune_program.main(job, Notes()).steps > 0

    @pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
    def test_runs_no_code_from_a_checkpoint(self, train_job, tmp_path, file):
        notes, job = Notes(stop_at=2), train_job()
        with pytest.raises(Preempted):
            finetune_program.main(job, notes)
        (saved,) = checkpoints_of(notes)
        assert not (saved / "training_args.bin").exists()
        torch.save(Malicious(tmp_path / "ran"), saved / file)
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            finetune_program.main(job.model_copy(update={"resume_from": saved}), Notes())
        assert not (tmp_path / "ran").exists()


class TestCancelledRun:
    def test_leaves_a_checkpoint_from_which_another_run_resumes(self, train_job, tmp_path):
        job = train_job(training={"epochs": 1000})

        class Cancelled(BaseException):
            pass

        def cancel(line):
            if line.get("step", 0) >= 3:
                raise Cancelled

        with pytest.raises(Cancelled):
            run_program(
                "tasks.finetune.program",
                job,
                FinetuneResult,
                scratch=tmp_path / "s",
                on_progress=cancel,
            )
        newest = max(job.work.glob("checkpoints/*/complete"), key=os.path.getmtime).parent
        reached = json.loads((newest / "trainer_state.json").read_text())["global_step"]
        notes = Notes(stop_at=0)
        with pytest.raises(Preempted):
            finetune_program.main(job.model_copy(update={"resume_from": newest}), notes)
        started_at = next(line["step"] for line in notes.lines if "step" in line)
        assert started_at == reached >= 3
