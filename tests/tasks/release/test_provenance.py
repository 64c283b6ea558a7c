"""Provenance: it names every step that made a release, and is read back years later."""

from __future__ import annotations

import json
import shutil

import pytest

from tasks.contracts.artifacts import Artifact
from tasks.contracts.errors import DamagedArtifact
from tasks.contracts.recipe_release import PublishRecipe
from tasks.contracts.release import Release
from tasks.release.provenance import (
    ShippedForm,
    provenance,
    provenance_if_whole,
    publish_settings,
    release_digest,
    seen_inputs,
    shipped_form,
)
from tasks.storage.store import list_files, manifest_digest
from tests.tasks.release.conftest import OPTIONAL

ALWAYS = {"load", "inspect", "tokenize", "finetune", "evaluate", "gate"}


class TestReleaseDigest:
    def test_is_that_of_all_published_files(self, publishable, store):
        settings = PublishRecipe(targets=("/releases",))
        plain = publishable(settings).candidate
        assert release_digest(plain, store) == plain.finetuned.artifact.digest
        exported = publishable(settings, gguf=b"rounded").candidate
        with store.scratch() as scratch:
            for artifact in (exported.finetuned.artifact, exported.gguf_exported.artifact):
                shutil.copytree(store.open(artifact), scratch / "all", dirs_exist_ok=True)
            expected = manifest_digest(list_files(scratch / "all"))
        assert release_digest(exported, store) == expected

    def test_changes_with_the_gguf_file(self, publishable, store):
        settings = PublishRecipe(targets=("/releases",))
        digests = {
            release_digest(publishable(settings, gguf=content).candidate, store)
            for content in (b"", b"one", b"two")
        }
        assert len(digests) == 3


class TestProvenance:
    def test_names_every_step_and_optional_result(self, inputs, store):
        found = provenance(inputs(**OPTIONAL), store)
        more = {"gguf", "gguf-export", "guard", "guard_evaluate", "guard_baseline", "llm-judge"}
        assert set(found["steps"]) == ALWAYS | more | {"benchmarks", "benchmark_baseline"}
        for name, said in found["steps"].items():
            assert said["key"] == f"key of {name}" and said["provenance"]["libraries"]
            assert said["artifact"] == name or name == "load"
        guard = {"uri": "guard.jsonl", "pinned": "guard@1", "digest": "of guard"}
        assert found["sources"]["guard"] == guard
        assert found["sources"]["benchmark_folder"]["digest"] == "of own"
        assert found["comparisons"] == {
            "llm_judge": "wise",
            "preferred": 0.75,
            "wins": 10,
            "ties": 10,
            "losses": 0,
            "inconsistent": 1,
            "unreadable": 2,
        }
        assert found["benchmarks"] == {"ships": {"acc": 0.5}}
        assert found["baseline_benchmarks"] == {"ships": {"acc": 0.25}}
        assert (found["guard_metrics"], found["baseline_guard_metrics"]) == (
            {"loss": 2.0},
            {"loss": 3.0},
        )
        json.dumps(found)

    def test_omits_optional_results_that_there_are_none_of(self, inputs, store):
        found = provenance(inputs(), store)
        assert set(found) == {
            "schema_version",
            "recipe",
            "recipe_digest",
            "plan",
            "sources",
            "steps",
            "data_report",
            "metrics",
            "baseline_metrics",
            "verdict",
        }
        assert set(found["steps"]) == ALWAYS and set(found["sources"]) == {"data", "model"}


class TestAnOldRelease:
    """One whose recipe has fields that no longer exist."""

    def release(self, store) -> Release:
        recorded = {
            "recipe": {
                "schema_version": 0,
                "model": {"url": "m", "ship": "adapter", "head": "linear"},
                "quantization": "nf4",
                "training": {"rounds": 3},
                "publish": {"targets": ["/releases"], "private": True, "licence": "MIT"},
            },
            "sources": {"model": {"uri": "m", "pinned": "m@1", "digest": "d"}},
        }
        with store.scratch() as scratch:
            (scratch / "p").mkdir()
            (scratch / "p" / "provenance.json").write_text(json.dumps(recorded))
            artifact = store.put("provenance", scratch / "p")
        model = Artifact(kind="model", digest="d" * 64, files=1, bytes=1, uri="")
        return Release(
            name="tiny",
            channel="production",
            version="d" * 12,
            digest="d" * 64,
            artifact=model,
            provenance=artifact,
        )

    def test_still_says_how_its_model_is_loaded(self, store):
        form = shipped_form(self.release(store), store)
        assert form == ShippedForm(ship="adapter", quantization="nf4", base="m@1")

    def test_still_says_where_it_is_published(self, store):
        expected = PublishRecipe(targets=("/releases",), private=True)
        assert publish_settings(self.release(store), store) == expected


class TestALostProvenance:
    """What a run needs of it is read from the model's files."""

    def release(self, store, files: dict[str, object]) -> Release:
        with store.scratch() as scratch:
            (scratch / "m").mkdir()
            for name, content in files.items():
                (scratch / "m" / name).write_text(json.dumps(content))
            model = store.put("model", scratch / "m")
        lost = Artifact(kind="provenance", digest="d" * 64, files=1, bytes=1, uri="")
        return Release(
            name="tiny",
            channel="production",
            version="d" * 12,
            digest="d" * 64,
            artifact=model,
            provenance=lost,
        )

    def adapter(self, store, reference: str, revision: str | None) -> Release:
        base = {"reference": reference, "digest": "x", "quantization": "nf4"}
        return self.release(
            store, {"adapter_config.json": {"revision": revision}, "base.json": base}
        )

    def test_of_a_merged_model_needs_nothing_more(self, store):
        form = shipped_form(self.release(store, {"config.json": {}}), store)
        assert form == ShippedForm(ship="merged", quantization="none", base="")

    def test_of_an_adapter_names_its_base_by_the_adapter_s_own_files(self, store):
        form = shipped_form(self.adapter(store, "org/base", "abc"), store)
        assert form == ShippedForm(ship="adapter", quantization="nf4", base="hf://org/base@abc")
        form = shipped_form(self.adapter(store, "s3://bucket/base", None), store)
        assert form.base == "s3://bucket/base"

    def test_of_an_adapter_on_a_local_base_names_the_command_that_restores_it(self, store):
        release = self.adapter(store, "sha256:x", None)
        with pytest.raises(DamagedArtifact, match="run `burnish repair MODEL`"):
            shipped_form(release, store)

    def test_leaves_the_training_data_unknown(self, store):
        release = self.release(store, {"config.json": {}})
        assert provenance_if_whole(release, store) is None
        assert seen_inputs(release, store) is None
