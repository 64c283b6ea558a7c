"""Provenance: recipe, data, code and library versions of a release, by digest."""

from __future__ import annotations

import shutil

import orjson

from tasks.contracts.candidate import Candidate
from tasks.contracts.release import VERSION_DIGITS, Release
from tasks.contracts.results import Loaded, StepResult
from tasks.release.card import model_card
from tasks.storage.store import Store

OPTIONS = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS


def make_release(candidate: Candidate, store: Store) -> Release:
    """The release of a candidate, with its provenance stored."""
    digest = candidate.finetuned.artifact.digest
    with store.scratch() as scratch:
        folder = scratch / "provenance"
        (folder / "card").mkdir(parents=True)
        described = provenance(candidate, store)
        (folder / "provenance.json").write_bytes(orjson.dumps(described, option=OPTIONS))
        (folder / "card" / "README.md").write_text(model_card(candidate))
        shutil.copy(store.file(candidate.loaded.artifact, "seen.npy"), folder)
        artifact = store.put("provenance", folder)
    return Release(
        name=candidate.recipe.name,
        channel=candidate.recipe.announce.channel,
        version=digest[:VERSION_DIGITS],
        digest=digest,
        artifact=candidate.finetuned.artifact,
        provenance=artifact,
    )


def provenance(candidate: Candidate, store: Store) -> dict:
    """All that is needed to make the release again: recipe, data, code and library versions.

    What only some recipes ask for (a GGUF base, a guard set, a judge, the harness) is there where
    it was asked for.
    """
    guard = candidate.guard
    steps: dict[str, StepResult | None] = {
        "load": candidate.loaded,
        "gguf": candidate.converted,
        "inspect": candidate.inspected,
        "guard": guard.loaded if guard else None,
        "tokenize": candidate.tokenized,
        "finetune": candidate.finetuned,
        "evaluate": candidate.scored,
        "llm-judge": candidate.compared,
        "benchmarks": candidate.benchmarks,
        "benchmark_baseline": candidate.benchmark_baseline,
        "guard_evaluate": candidate.guard_scored,
        "guard_baseline": candidate.guard_baseline,
        "gate": candidate.gate_result,
    }
    # The files of a source are named by its digest; a list of thousands belongs to no page.
    sources = {
        "data": candidate.data,
        "model": candidate.model,
        "guard": guard.source if guard else None,
        "benchmark_folder": candidate.benchmark_folder,
    }
    return {
        "schema_version": 1,
        "recipe": candidate.recipe.model_dump(mode="json"),
        "recipe_digest": candidate.recipe.digest,
        "plan": candidate.plan.model_dump(mode="json"),
        "sources": {
            name: source.model_dump(mode="json", include={"uri", "pinned", "digest"})
            for name, source in sources.items()
            if source
        },
        "steps": {
            name: {
                "key": result.key,
                "artifact": result.artifact.digest,
                "provenance": result.provenance.model_dump(mode="json")
                if result.provenance
                else None,
            }
            for name, result in steps.items()
            if result
        },
        "data_report": data_report(candidate.loaded, store),
        "metrics": candidate.scored.metrics,
        "baseline_metrics": candidate.baseline.metrics if candidate.baseline else {},
        **_beside(candidate),
        "verdict": candidate.gate_result.verdict.model_dump(mode="json"),
    }


def _beside(candidate: Candidate) -> dict:
    """What was found beside the test examples' metrics, of what was asked for."""
    found: dict = {}
    if candidate.compared:
        found["comparisons"] = candidate.compared.model_dump(
            mode="json", exclude={"artifact", "key", "provenance", "schema_version"}
        )
    if candidate.benchmarks:
        found["benchmarks"] = candidate.benchmarks.results
    if candidate.benchmark_baseline:
        found["baseline_harness"] = candidate.benchmark_baseline.results
    if candidate.guard_scored:
        found["guard_metrics"] = candidate.guard_scored.metrics
    if candidate.guard_baseline:
        found["baseline_guard_metrics"] = candidate.guard_baseline.metrics
    return found


def provenance_of(release: Release, store: Store) -> dict:
    """What `provenance` said when the release was made."""
    return orjson.loads(store.file(release.provenance, "provenance.json").read_bytes())


def data_report(loaded: Loaded, store: Store) -> dict:
    """The data report that the load step made."""
    return orjson.loads(store.file(loaded.artifact, "report.json").read_bytes())
