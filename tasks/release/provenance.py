"""Provenance: recipe, data, code and library versions of a release, by digest."""

from __future__ import annotations

import contextlib
import shutil
from typing import Literal

import orjson

from tasks.contracts.artifacts import Artifact
from tasks.contracts.base import Contract
from tasks.contracts.candidate import Candidate, Trained
from tasks.contracts.errors import DamagedArtifact
from tasks.contracts.recipe_release import PublishRecipe
from tasks.contracts.release import VERSION_DIGITS, Release
from tasks.contracts.results import Loaded, StepResult
from tasks.release.card import model_card
from tasks.release.inputs import ReleaseInputs
from tasks.storage.sources import stated_license
from tasks.storage.store import Store, manifest_digest

OPTIONS = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS


def make_release(inputs: ReleaseInputs, store: Store) -> Release:
    """The release of a candidate; its provenance is stored."""
    candidate = inputs.candidate
    model = candidate.finetuned.artifact
    gguf = candidate.gguf_exported.artifact if candidate.gguf_exported else None
    digest = release_digest(candidate, store)
    with store.scratch() as scratch:
        folder = scratch / "provenance"
        (folder / "card").mkdir(parents=True)
        described = provenance(inputs, store)
        (folder / "provenance.json").write_bytes(orjson.dumps(described, option=OPTIONS))
        (folder / "card" / "README.md").write_text(
            model_card(inputs, stated_license(candidate.model))
        )
        shutil.copy(store.file(candidate.loaded.artifact, "seen.npy"), folder)
        artifact = store.put("provenance", folder)
    return Release(
        name=inputs.name,
        channel=inputs.channel,
        version=digest[:VERSION_DIGITS],
        digest=digest,
        artifact=model,
        gguf=gguf,
        provenance=artifact,
    )


def release_digest(trained: Trained, store: Store) -> str:
    """The digest of the files that a trained model is released with: model and GGUF file.

    Without a GGUF file it is the model's digest.
    """
    model = trained.finetuned.artifact
    if trained.gguf_exported is None:
        return model.digest
    manifests = [store.manifest(model), store.manifest(trained.gguf_exported.artifact)]
    return manifest_digest([entry for manifest in manifests for entry in manifest.files])


def provenance(inputs: ReleaseInputs, store: Store) -> dict:
    """What is needed to reproduce the release: recipe, data, code and library versions.

    What only some recipes have (a GGUF base, a guard set, an LLM judge, benchmarks) is there only
    if the recipe has it.
    """
    candidate = inputs.candidate
    return {
        "schema_version": 1,
        "recipe": inputs.recipe,
        "recipe_digest": inputs.recipe_digest,
        "plan": candidate.plan.model_dump(mode="json"),
        "sources": _sources(candidate),
        "steps": _steps(candidate),
        "data_report": data_report(candidate.loaded, store),
        "metrics": candidate.scored.metrics,
        "baseline_metrics": candidate.baseline.metrics if candidate.baseline else {},
        **_optional_results(candidate),
        "verdict": candidate.gate_result.verdict.model_dump(mode="json"),
        **({"approval": inputs.approval.model_dump(mode="json")} if inputs.approval else {}),
    }


def _sources(candidate: Candidate) -> dict:
    sources = {
        "data": candidate.data,
        "model": candidate.model,
        "guard": candidate.guard.source if candidate.guard else None,
        "benchmark_folder": candidate.benchmark_folder,
    }
    # A source's digest covers its files; a list of thousands does not belong on a page.
    return {
        name: source.model_dump(mode="json", include={"uri", "pinned", "digest"})
        for name, source in sources.items()
        if source
    }


def _steps(candidate: Candidate) -> dict:
    results: dict[str, StepResult | None] = {
        "load": candidate.loaded,
        "gguf": candidate.converted,
        "inspect": candidate.inspected,
        "guard": candidate.guard.loaded if candidate.guard else None,
        "tokenize": candidate.tokenized,
        "finetune": candidate.finetuned,
        "gguf-export": candidate.gguf_exported,
        "evaluate": candidate.scored,
        "llm-judge": candidate.compared,
        "benchmarks": candidate.benchmarks,
        "benchmark_baseline": candidate.benchmark_baseline,
        "guard_evaluate": candidate.guard_scored,
        "guard_baseline": candidate.guard_baseline,
        "gate": candidate.gate_result,
    }
    return {
        name: {
            "key": result.key,
            "artifact": result.artifact.digest,
            "provenance": result.provenance.model_dump(mode="json") if result.provenance else None,
        }
        for name, result in results.items()
        if result
    }


def _optional_results(candidate: Candidate) -> dict:
    found: dict = {}
    if candidate.compared:
        found["comparisons"] = candidate.compared.model_dump(
            mode="json", exclude={"artifact", "key", "provenance", "schema_version"}
        )
    if candidate.benchmarks:
        found["benchmarks"] = candidate.benchmarks.results
    if candidate.benchmark_baseline:
        found["baseline_benchmarks"] = candidate.benchmark_baseline.results
    if candidate.guard_scored:
        found["guard_metrics"] = candidate.guard_scored.metrics
    if candidate.guard_baseline:
        found["baseline_guard_metrics"] = candidate.guard_baseline.metrics
    return found


class ShippedForm(Contract):
    """How a release's model is loaded.

    Attributes:
        ship: `merged` or `adapter`.
        quantization: Of the base, for an adapter.
        base: The base model's pinned URI.
    """

    ship: Literal["merged", "adapter"]
    quantization: str
    base: str


def shipped_form(release: Release, store: Store) -> ShippedForm:
    """How a release's model is loaded, from its provenance, or if that is damaged from its files.

    Only these fields of its recipe are read: an older version of Burnish may have written it, whose
    other fields have been renamed since.

    Raises:
        DamagedArtifact: It is an adapter, and nothing says where its base model is.
    """
    recorded = provenance_if_whole(release, store)
    if recorded is None:
        return _form_of_files(release, store)
    recipe = recorded["recipe"]
    return ShippedForm(
        ship=recipe["model"]["ship"],
        quantization=recipe["quantization"],
        base=recorded["sources"]["model"]["pinned"],
    )


def _form_of_files(release: Release, store: Store) -> ShippedForm:
    paths = {entry.path for entry in store.manifest(release.artifact).files}
    if "adapter_config.json" not in paths:
        return ShippedForm(ship="merged", quantization="none", base="")
    config, base = (
        orjson.loads(store.file(release.artifact, name).read_bytes())
        for name in ("adapter_config.json", "base.json")
    )
    name, revision = base["reference"], config["revision"]
    if name.startswith("sha256:"):
        # The base was a local folder, whose path only the provenance has.
        provenance_of(release, store)
    uri = name if name.startswith(("s3://", "package:")) else f"hf://{name}@{revision}"
    return ShippedForm(ship="adapter", quantization=base["quantization"], base=uri)


def publish_settings(release: Release, store: Store) -> PublishRecipe:
    """Where a release was to be published, from its provenance; see `shipped_form`."""
    recorded = provenance_of(release, store)["recipe"]["publish"]
    return PublishRecipe(targets=recorded["targets"], private=recorded["private"])


def provenance_of(release: Release, store: Store) -> dict:
    """What `provenance` returned when the release was made.

    Raises:
        DamagedArtifact: It is damaged.
    """
    return orjson.loads(store.file(release.provenance, "provenance.json").read_bytes())


def provenance_if_whole(release: Release, store: Store) -> dict | None:
    """As `provenance_of`; None if it is damaged: a comparison can do without."""
    with contextlib.suppress(DamagedArtifact):
        return provenance_of(release, store)
    return None


def seen_inputs(release: Release, store: Store) -> Artifact | None:
    """The artifact with the hashes of the inputs that a release was trained on; None if it is
    damaged."""
    with contextlib.suppress(DamagedArtifact):
        store.file(release.provenance, "seen.npy")
        return release.provenance
    return None


def damage_sentence(release: Release) -> str:
    """The warning of a run that goes on without the deployed release's provenance."""
    return (
        f"The provenance of the deployed version {release.version} is damaged: changes since its "
        "data and its training examples are unknown. `burnish repair "
        f"{release.name} --channel {release.channel}` restores what it finds elsewhere"
    )


def data_report(loaded: Loaded, store: Store) -> dict:
    """The load step's data report."""
    return orjson.loads(store.file(loaded.artifact, "report.json").read_bytes())
