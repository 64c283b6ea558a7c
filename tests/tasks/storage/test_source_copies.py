"""Local sources have a copy in the store, so that a worker elsewhere can read them."""

import shutil

import pytest

from tasks.contracts.artifacts import Source
from tasks.contracts.base import Contract
from tasks.contracts.errors import DamagedArtifact
from tasks.storage.source_copies import from_stored_copies, with_stored_copies
from tasks.storage.sources import fetch_folder, resolve
from tasks.storage.store import open_store


class Inner(Contract):
    folder: Source | None


class Inputs(Contract):
    model: Source
    inner: Inner


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def inputs_of(folder, inner=None):
    return Inputs(model=resolve(str(folder), "model"), inner=Inner(folder=inner))


class TestCopies:
    def test_are_read_where_the_files_are_not(self, store, model, tmp_path):
        inputs = inputs_of(model, resolve(str(model), "tasks"))
        sent = with_stored_copies(inputs, store)
        assert sent.key_part() == inputs.key_part()
        shutil.rmtree(model)
        got = from_stored_copies(Inputs.model_validate_json(sent.model_dump_json()), store)
        folder = fetch_folder(got.model, tmp_path / "scratch")
        assert (folder / "model.safetensors").read_bytes() == b"weights"
        assert fetch_folder(got.inner.folder, tmp_path / "scratch").is_dir()
        assert got.key_part() == inputs.key_part()

    def test_leave_the_originals_alone_and_are_made_once(self, store, model):
        sent = with_stored_copies(inputs_of(model), store)
        assert (model / "model.safetensors").read_bytes() == b"weights"
        (model / "model.safetensors").unlink()  # Reading it again would fail.
        assert with_stored_copies(sent, store) == sent

    def test_are_not_made_of_what_a_worker_can_fetch(self, store, model):
        source = inputs_of(model).model
        files = tuple(
            file.model_copy(update={"location": f"hf://o/n@c/{file.path}"}) for file in source.files
        )
        remote = source.model_copy(update={"files": files})
        inputs = Inputs(model=remote, inner=Inner(folder=None))
        assert with_stored_copies(inputs, store) == inputs
        assert store.objects.sizes("artifacts/") == {}

    def test_are_not_made_of_what_is_in_a_folder_that_both_share(self, store, model):
        inside = shutil.copytree(model, f"{store.uri}/artifacts/base/d/files")
        inputs = inputs_of(inside)
        assert with_stored_copies(inputs, store) == inputs

    def test_that_are_damaged_are_refused(self, store, model):
        sent = with_stored_copies(inputs_of(model), store)
        copy = sent.model.stored_copy
        file = f"artifacts/{copy.kind}/{copy.digest}/files/model.safetensors"
        store.objects.write(file, b"changed")
        with pytest.raises(DamagedArtifact) as caught:
            from_stored_copies(sent, store)
        assert (caught.value.kind, caught.value.digest) == ("source", copy.digest)
