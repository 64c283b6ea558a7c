"""When the GGUF export runs, and what it stores."""

import pytest

from tasks.contracts.errors import BadModel
from tasks.contracts.jobs import Done, ExportGgufResult
from tasks.finetune import gguf_export_step
from tasks.finetune.gguf_export_step import (
    GgufCheckInputs,
    GgufExportInputs,
    check_gguf_export,
    export_gguf,
)
from tasks.runtime.gguf_converter import SCRIPT, VARIABLE
from tasks.storage.sources import resolve
from tasks.storage.store import open_store
from tests.tasks.samples import run_context


@pytest.fixture
def context(tmp_path):
    return run_context(tmp_path)


@pytest.fixture
def model(tmp_path, context):
    """A stored model."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return open_store(context.store).put("model", folder)


@pytest.fixture
def converter(tmp_path, monkeypatch):
    """A converter script that the environment variable names."""
    script = tmp_path / SCRIPT
    script.write_text("")
    monkeypatch.setenv(VARIABLE, str(script))
    return script


@pytest.fixture
def jobs(monkeypatch):
    """Record the jobs of programs instead of running them; an export writes a small file."""
    recorded = []

    def run_program(module, job, result, **options):
        recorded.append(job)
        if result is Done:
            return Done()
        (job.out / "model-q8_0.gguf").write_text(job.file_type)
        return ExportGgufResult(file="model-q8_0.gguf", bytes=4)

    monkeypatch.setattr(gguf_export_step, "run_program", run_program)
    return recorded


class TestExport:
    def test_stores_the_gguf_file_apart_from_the_model(self, model, context, converter, jobs):
        inputs = GgufExportInputs(model=model, file_type="q8_0", converter="c")
        exported = export_gguf.once(inputs, context)
        store = open_store(context.store)
        assert exported.file == "model-q8_0.gguf" and exported.artifact.kind == "gguf"
        assert [file.name for file in store.open(exported.artifact).iterdir()] == [exported.file]
        assert [file.name for file in store.open(model).iterdir()] == ["model.safetensors"]
        (job,) = jobs
        assert job.converter == converter and job.model == store.open(model)

    def test_is_repeated_only_if_its_file_is_gone(self, model, context, converter, jobs):
        inputs = GgufExportInputs(model=model, file_type="q8_0", converter="c")
        first = export_gguf.once(inputs, context)
        assert export_gguf.once(inputs, context) == first
        open_store(context.store).discard("gguf", first.artifact.digest)
        assert export_gguf.once(inputs, context).artifact == first.artifact
        assert len(jobs) == 2


class TestKey:
    def test_depends_on_model_type_and_converter(self, model):
        def key(**changes):
            fields = {"model": model, "file_type": "f16", "converter": "c"} | changes
            return export_gguf.key(GgufExportInputs(**fields))

        before = key()
        assert key() == before
        assert key(file_type="q8_0") != before
        assert key(model=model.model_copy(update={"digest": "other"})) != before
        assert key(converter="other") != before


class TestCheck:
    @pytest.fixture
    def base(self, tmp_path):
        folder = tmp_path / "base"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"")
        return resolve(str(folder), "model")

    def test_gets_the_base_model_and_the_tokenizer_that_ships(
        self, base, model, context, converter, jobs
    ):
        check_gguf_export.once(check_of(base, model), context)
        (job,) = jobs
        assert job.base.name == "base" and job.file_type == "f16"
        assert job.tokenizer == open_store(context.store).open(model)

    def test_is_done_once_for_a_converter(self, base, model, context, converter, jobs):
        check_gguf_export.once(check_of(base, model), context)
        check_gguf_export.once(check_of(base, model), context)
        assert len(jobs) == 1
        check_gguf_export.once(check_of(base, model, converter="other"), context)
        assert len(jobs) == 2

    def test_raises_the_error_of_the_program(self, base, model, context, converter, monkeypatch):
        def refuse(module, job, result, **options):
            raise BadModel("model.gguf", "a", "b", "c")

        monkeypatch.setattr(gguf_export_step, "run_program", refuse)
        with pytest.raises(BadModel):
            check_gguf_export.once(check_of(base, model), context)


def check_of(base, tokenizer, converter="c"):
    return GgufCheckInputs(base=base, tokenizer=tokenizer, file_type="f16", converter=converter)
