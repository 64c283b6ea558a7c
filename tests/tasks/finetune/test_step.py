"""The finetune step: its key, the job that it runs, and what it stores."""

import pytest

from tasks.contracts.errors import Hung, OutOfDeviceMemory, Preempted, preempted
from tasks.contracts.jobs import FinetuneResult, TokenShard
from tasks.contracts.plan import Plan
from tasks.contracts.recipe_training import LoraRecipe, TrainingRecipe
from tasks.finetune import step as finetune_step
from tasks.finetune.step import FinetuneInputs, finetune, token_files
from tasks.storage.sources import resolve
from tasks.storage.store import open_store
from tests.tasks.samples import run_context

CPU = Plan(device="cpu", precision="fp32")
RESULT = FinetuneResult(
    metrics={"loss": 0.5},
    check_loss=0.25,
    history=({"loss": 0.5},),
    best_epoch=1.0,
    steps=3,
    trained_parameters=10,
    warnings=(),
)


@pytest.fixture
def context(tmp_path):
    return run_context(tmp_path)


@pytest.fixture
def store(tmp_path, context):
    """Store files as an artifact; give their content by name."""

    def put(kind, **files):
        folder = tmp_path / kind
        folder.mkdir()
        for name, text in files.items():
            (folder / name.replace("_", ".")).write_text(text)
        return open_store(context.store).put(kind, folder)

    return put


@pytest.fixture
def inputs(tmp_path, store):
    """Inputs with one shard of tokens; give what differs."""
    base = tmp_path / "base-model"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"")
    shard = store("shard-tokens", tokens_parquet="ids")
    tokens = store("tokens", tokens_json=f'{{"abc": {shard.model_dump_json()}}}')
    dataset, tokenizer = store("dataset", keep_npz="splits"), store("tokenizer", a_json="{}")

    def make(**changes):
        return FinetuneInputs(
            model=resolve(str(base), "model"),
            tokenizer=tokenizer,
            dataset=dataset,
            tokens=tokens,
            labels=("a", "b"),
            lora=LoraRecipe(),
            quantization="none",
            ship="merged",
            head_modules=("classifier",),
            **{"plan": CPU, "training": TrainingRecipe(time_limit_minutes=2)} | changes,
        )

    return make


class TestKey:
    def test_depends_on_the_version_of_liger_kernel(self, inputs):
        assert finetune.key(inputs(liger_version="0.8.5")) != finetune.key(inputs())

    def test_does_not_depend_on_how_memory_is_used(self, inputs):
        key = finetune.key(inputs())
        tight = inputs(micro_batch_tokens=64, max_micro_batch_tokens=128, tight_memory=True)
        assert finetune.key(tight) == key
        assert finetune.key(inputs(task="instruction")) != key


class TestFinetune:
    def test_runs_the_program_and_stores_its_model(self, inputs, context, monkeypatch):
        calls = []

        def run_program(module, job, result, **options):
            calls.append((module, job, options))
            options["on_progress"]({"tokens_per_second": 250.0})
            job.out.mkdir()
            (job.out / "model.safetensors").write_bytes(b"weights")
            job.check_out.parent.mkdir()
            job.check_out.write_bytes(b"examples")
            return RESULT

        monkeypatch.setattr(finetune_step, "run_program", run_program)
        given = inputs(max_micro_batch_tokens=128)
        trained = finetune.once(given, context)
        assert (trained.metrics, trained.steps) == (RESULT.metrics, RESULT.steps)
        assert trained.tokens_per_second == 250.0
        stored = open_store(context.store).open(trained.artifact)
        assert [file.name for file in stored.iterdir()] == ["model.safetensors"]
        examples = open_store(context.store).file(trained.check, "examples.parquet")
        assert (examples.read_bytes(), trained.check_loss) == (b"examples", 0.25)
        [(module, job, options)] = calls
        assert module == "tasks.finetune.program"
        assert (job.labels, job.head_modules) == (given.labels, given.head_modules)
        assert job.max_micro_batch_tokens == 128
        assert job.base_pin.digest == given.model.digest
        assert job.keep_file.read_text() == "splits"
        assert (options["time_limit"], options["processes"]) == (120, 1)


class TestInterruptedTraining:
    @pytest.fixture
    def interrupted(self, inputs, context, monkeypatch):
        """A training that wrote a checkpoint of step 20 and was stopped at step 25."""

        def run_program(module, job, result, **options):
            saved = job.work / "checkpoints" / "checkpoint-20"
            saved.mkdir(parents=True)
            (saved / "optimizer.pt").write_text("state")
            line = {"stage": "training", "step": 20, "steps": 100}
            options["on_progress"]({**line, "checkpoint": str(saved)})
            options["on_progress"]({**line, "step": 25})
            raise preempted()

        monkeypatch.setattr(finetune_step, "run_program", run_program)
        with pytest.raises(Preempted) as caught:
            finetune.once(inputs(), context)
        return caught.value

    def test_says_how_far_it_got(self, interrupted):
        assert interrupted.kept == (
            "The training reached step 25 of 100; the next run goes on from the checkpoint of "
            "step 20."
        )

    @pytest.mark.parametrize("refresh", [False, True])
    def test_goes_on_from_its_checkpoint_unless_it_is_refreshed(
        self, interrupted, inputs, context, monkeypatch, refresh
    ):
        begun = []

        def run_program(module, job, result, **options):
            begun.append(job.resume_from and (job.resume_from / "optimizer.pt").read_text())
            for folder in (job.out, job.check_out.parent):
                folder.mkdir()
                (folder / "file").write_text("content")
            return RESULT

        monkeypatch.setattr(finetune_step, "run_program", run_program)
        refreshing = {"refresh": ("finetune",) if refresh else (), "run_id": "another"}
        again = context.model_copy(update=refreshing)
        trained = finetune.once(inputs(), again)
        assert begun == [None if refresh else "state"]
        assert trained.resumed.startswith("" if refresh else "step 20 of 100, a checkpoint of run")
        objects = open_store(context.store).objects
        assert not objects.sizes("checkpoints/") | objects.sizes("artifacts/checkpoint/")


class TestHungTraining:
    @pytest.mark.parametrize("times", [1, 2])
    def test_is_started_again_once(self, inputs, context, monkeypatch, times):
        calls = []

        def run_program(module, job, result, **options):
            calls.append(options["stall_seconds"])
            if len(calls) <= times:
                options["on_progress"]({"stage": "training", "step": 25, "steps": 100})
                raise Hung("program finetune", "no progress for 30.0 minutes", "a step", "look")
            for folder in (job.out, job.check_out.parent):
                folder.mkdir()
                (folder / "file").write_text("content")
            return RESULT

        monkeypatch.setattr(finetune_step, "run_program", run_program)
        given = inputs(training=TrainingRecipe(stall_minutes=0.5))
        if times == 2:
            with pytest.raises(Hung):
                finetune.once(given, context)
        else:
            (warning,) = finetune.once(given, context).warnings
            assert "program finetune was ended (no progress for 30.0 minutes)" in warning
            assert "reached step 25 of 100" in warning
        assert calls == [30.0, 30.0]


class TestADeviceThatIsTooSmall:
    @pytest.mark.parametrize("fits_after", [1, 3, 4])
    def test_gets_half_the_micro_batch_from_the_checkpoint_on(
        self, inputs, context, monkeypatch, fits_after
    ):
        begun = []

        def run_program(module, job, result, **options):
            begun.append((job.halvings, job.resume_from is not None))
            line = {"stage": "training", "step": 20 * len(begun), "steps": 100}
            saved = job.work / "checkpoints" / "checkpoint"
            saved.mkdir(parents=True)
            (saved / "optimizer.pt").write_text(str(len(begun)))
            options["on_progress"]({**line, "checkpoint": str(saved)})
            if len(begun) <= fits_after:
                raise OutOfDeviceMemory("training.batch_size", "CUDA out of memory", "a", "b")
            for folder in (job.out, job.check_out.parent):
                folder.mkdir()
                (folder / "file").write_text("content")
            return RESULT

        monkeypatch.setattr(finetune_step, "run_program", run_program)
        if fits_after == 4:
            with pytest.raises(OutOfDeviceMemory):
                finetune.once(inputs(), context)
        else:
            *_, last = finetune.once(inputs(), context).warnings
            assert f"1/{2**fits_after} of the planned size" in last
            assert f"goes on from the checkpoint of step {20 * fits_after}" in last
        expected = [(0, False), (1, True), (2, True), (3, True)]
        assert begun == expected[: fits_after + 1]


class TestARefreshedTraining:
    def test_that_is_tried_again_goes_on_from_its_own_checkpoint(
        self, inputs, context, monkeypatch
    ):
        begun = []

        def run_program(module, job, result, **options):
            begun.append(job.resume_from is not None)
            saved = job.work / "checkpoints" / "checkpoint-20"
            saved.mkdir(parents=True)
            (saved / "optimizer.pt").write_text(str(len(begun)))
            line = {"stage": "training", "step": 20, "steps": 100}
            options["on_progress"]({**line, "checkpoint": str(saved)})
            raise preempted()

        monkeypatch.setattr(finetune_step, "run_program", run_program)
        refreshing = context.model_copy(update={"refresh": ("finetune",), "run_id": "one"})
        for run in ("one", "one", "another"):
            with pytest.raises(Preempted):
                finetune.once(inputs(), refreshing.model_copy(update={"run_id": run}))
        assert begun == [False, True, False]


class TestTokenFiles:
    def test_are_the_local_files_of_the_shards(self, inputs, context):
        [shard] = token_files(inputs().tokens, context)
        assert shard == TokenShard(digest="abc", tokens=shard.tokens)
        assert shard.tokens.read_text() == "ids"
