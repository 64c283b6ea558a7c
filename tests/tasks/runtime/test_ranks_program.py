"""Training on several ranks gives the same model as on one, and all ranks end together."""

import json
import shutil
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from tasks.contracts.errors import Preempted
from tasks.contracts.jobs import FinetuneResult
from tasks.finetune import program as finetune_program
from tasks.runtime.run_program import run_program
from tests.tasks.conftest import Notes
from tests.tasks.language_samples import adapter_of

SETTINGS = {"epochs": 2, "batch_size": 7, "learning_rate": 2e-3}


@pytest.fixture
def run(tmp_path):
    """Trains on a number of ranks; a single one runs in this process."""

    def run(job, processes, **options):
        plan = job.plan.model_copy(update={"world_size": processes})
        job = job.model_copy(update={"plan": plan})
        if processes == 1:
            return finetune_program.main(job, Notes())
        options |= {"scratch": job.work.parent, "processes": processes}
        return run_program("tasks.finetune.program", job, FinetuneResult, **options)

    return run


def assert_alike(jobs, results, names, precision="fp32"):
    bf16 = precision == "bf16"
    one, other = (result.history for result in results)
    assert [set(entry) for entry in one] == [set(entry) for entry in other]
    # Within an epoch, it is counted in micro-batches; a rounding may make another token likelier.
    left_out = {"epoch", "eval_accuracy"} if bf16 else {"epoch"}
    for before, after in zip(one, other, strict=True):
        for name in before.keys() - left_out:
            # The norm of gradients that nearly cancel out has fewer true digits.
            wanted = pytest.approx(before[name], rel=5e-3 if bf16 else 1e-3, abs=1e-4)
            assert after[name] == wanted, name
    for name in names:
        found, expected = (result.metrics[name] for result in results)
        assert found == pytest.approx(expected, abs=2e-3 if bf16 else 1e-4)
    one, other = map(adapter_of, jobs)
    assert set(one) == set(other)
    most = 5e-3 if bf16 else 2e-3
    assert all((one[name] - other[name]).abs().max() < most for name in one)
    shipped = [load_file(job.out / "model.safetensors") for job in jobs]
    assert set(shipped[0]) == set(shipped[1])


class TestARequestToStop:
    @pytest.mark.slow
    @pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
    def test_leaves_a_checkpoint_that_gives_the_same(self, lm_job, run, sharding):
        settings = SETTINGS | {"epochs": 3}
        jobs = [lm_job(plan={"sharding": sharding}, training=settings) for _ in range(2)]
        expected = run(jobs[0], 2)
        saved = []

        def stop(facts):
            saved.extend(filter(None, [facts.get("checkpoint")]))
            if facts["stage"] == "training" and facts["step"] == 0:
                launcher = next(
                    child
                    for child in psutil.Process().children()
                    if "tasks.runtime.ranks_program" in child.cmdline()
                )
                # To one of them, and not the first: all must hear of it.
                launcher.children()[-1].terminate()

        with pytest.raises(Preempted, match="a checkpoint of step"):
            run(jobs[1], 2, on_progress=stop)
        job = jobs[1].model_copy(update={"resume_from": Path(saved[-1])})
        assert run(job, 2).metrics == expected.metrics
        one, other = map(adapter_of, jobs)
        assert all((one[name] == other[name]).all() for name in one)


class TestTwoProcesses:
    """Batches of 7 and splits of 32 and 8: neither comes out even."""

    @pytest.mark.slow
    @pytest.mark.parametrize("task", ["instruction", "preference"])
    def test_train_a_language_model_as_one_does(self, lm_job, run, task):
        jobs = [lm_job(task=task, training=SETTINGS, micro_batch_tokens=40) for _ in range(2)]
        results = [run(job, count) for count, job in enumerate(jobs, 1)]
        assert_alike(jobs, results, ("loss", "accuracy"))

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("task", "precision", "checkpointing", "names"),
        [
            ("preference", "fp32", True, ("loss", "accuracy", "margin")),
            ("instruction", "bf16", True, ("loss",)),
        ],
    )
    def test_that_share_the_model_train_it_as_one_does(
        self,
        lm_job,
        run,
        task,
        precision,
        checkpointing,
        names,
    ):
        plan = {"precision": precision, "checkpointing": checkpointing}
        jobs = [
            lm_job(
                task=task, plan=plan | {"sharding": kind}, training=SETTINGS, micro_batch_tokens=40
            )
            for kind in ("ddp", "fsdp")
        ]
        results = [run(job, count) for count, job in enumerate(jobs, 1)]
        assert_alike(jobs, results, names, precision)

    @pytest.mark.slow
    def test_train_a_classifier_as_one_does(self, train_job, run):
        settings = SETTINGS | {"best_by": "loss"}
        options = {"quantization": "none", "training": settings, "lora": {"dropout": 0.0}}
        jobs = [train_job(**options, micro_batch_examples=size) for size in (0, 2)]
        for number, job in enumerate(jobs):
            # The head keeps a dropout of its own.
            base = shutil.copytree(job.base, job.work.parent / "base")
            config = json.loads((base / "config.json").read_text())
            (base / "config.json").write_text(json.dumps(config | {"classifier_dropout": 0.0}))
            jobs[number] = job.model_copy(update={"base": base})
        results = [run(job, count) for count, job in enumerate(jobs, 1)]
        assert_alike(jobs, results, ("loss", "accuracy", "f1"))
