"""The model card: what a stranger who finds the release must know."""

from __future__ import annotations

import yaml

from tasks.contracts.candidate import Candidate
from tasks.report.markdown import benchmarks_markdown, markdown_table, verdict_markdown

PIPELINES = {
    "text-classification": "text-classification",
    "completion": "text-generation",
    "instruction": "text-generation",
    "preference": "text-generation",
}
"""What the Hub calls each task (https://huggingface.co/docs/hub/models-tasks)."""
PURPOSES = {
    "completion": "to write such texts on",
    "instruction": "to answer as in its data, in chat",
    "preference": "to prefer such answers as people chose in its data (DPO)",
}


def model_card(candidate: Candidate) -> str:
    """A model card in the Hub's format (https://huggingface.co/docs/hub/model-cards).

    It says nothing of when or where it was written: the same release has the same card.
    """
    return (
        f"---\n{yaml.safe_dump(_front_matter(candidate), sort_keys=False)}---\n\n{_body(candidate)}"
    )


def _front_matter(candidate: Candidate) -> dict:
    recipe, metrics = candidate.recipe, candidate.scored.metrics
    front = {
        "library_name": "transformers",
        "pipeline_tag": PIPELINES[recipe.task],
        "tags": ["burnish", "lora" if recipe.quantization == "none" else "qlora"],
    }
    if recipe.model.uri.startswith("hf://"):
        front["base_model"] = recipe.model.uri.removeprefix("hf://").split("@")[0]
    front["model-index"] = [
        {
            "name": recipe.name,
            "results": [
                {
                    "task": {"type": PIPELINES[recipe.task]},
                    "dataset": {"name": ", ".join(recipe.data.uris), "type": "custom"},
                    "metrics": [
                        {"type": name, "value": round(value, 4)} for name, value in metrics.items()
                    ],
                }
            ],
        }
    ]
    return front


def _body(candidate: Candidate) -> str:
    recipe, loaded = candidate.recipe, candidate.loaded
    rows = loaded.rows
    metrics = candidate.scored.metrics
    return f"""# {recipe.name}

Fine-tuned from `{recipe.model.uri}` {_purpose(candidate)}.

## Metrics on {rows["test"]} test examples

{markdown_table(("metric", "value"), [(name, f"{value:.4f}") for name, value in metrics.items()])}

## Verdict

{verdict_markdown(candidate.gate_result.verdict)}
{_beside(candidate)}
## Data

`{"`, `".join(recipe.data.uris)}` (digest `{candidate.data.digest[:12]}`): {rows["train"]} examples
to train, {rows["validation"]} to choose the epoch, {rows["test"]} to judge. Examples are split by
{recipe.data.split.by}; duplicates were dropped.

## Training

LoRA of rank {recipe.lora.r} on a base in {_precision(candidate)}, {recipe.training.epochs} epochs
at most, learning rate {recipe.training.learning_rate:g}, seed {recipe.training.seed}. What ships:
{recipe.model.ship}.{_gguf(candidate)}

## Provenance

Model `{candidate.finetuned.artifact.digest}`, base model `{candidate.model.digest[:12]}`, recipe
`{recipe.digest[:12]}`, training key `{candidate.finetuned.key[:12]}`.
"""


def _beside(candidate: Candidate) -> str:
    """What was asked of it beside the test examples."""
    said = ""
    if guard := candidate.guard:
        said += (
            f"\nWhat must not be forgotten: `{guard.source.uri}` (digest "
            f"`{guard.source.digest[:12]}`), {guard.loaded.rows['test']} examples.\n"
        )
    if compared := candidate.compared:
        said += (
            f"\nThe judge `{compared.llm_judge}` preferred its answers {compared.wins} times, the "
            f"baseline's {compared.losses} times, and neither {compared.ties} times.\n"
        )
    if candidate.benchmarks:
        table = benchmarks_markdown(candidate.benchmarks, candidate.benchmark_baseline)
        said += f"\n## Harness\n\n{table}\n"
    return said


def _gguf(candidate: Candidate) -> str:
    kind = candidate.recipe.model.gguf
    if kind == "none":
        return ""
    rounded = "" if kind == "f32" else f", and its weights are rounded to {kind}"
    return f"""

## GGUF

`model-{kind}.gguf` is the same model for llama.cpp and Ollama (`ollama create NAME -f Modelfile`).
The metrics and the verdict above are those of the model in safetensors; the GGUF file was not
scored{rounded}."""


def _purpose(candidate: Candidate) -> str:
    labels = candidate.loaded.labels
    if not labels:
        return PURPOSES[candidate.recipe.task]
    named = ", ".join(f"`{label}`" for label in labels)
    return f"to tell {len(labels)} labels apart:\n{named}"


def _precision(candidate: Candidate) -> str:
    if candidate.recipe.quantization == "nf4":
        return f"nf4, computing in {candidate.plan.precision}"
    return candidate.plan.precision
