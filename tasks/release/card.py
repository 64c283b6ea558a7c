"""The model card: what someone who finds the release needs to know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tasks.contracts.candidate import Candidate
from tasks.contracts.recipe_data import DataRecipe
from tasks.release.inputs import ReleaseInputs
from tasks.report.markdown import benchmarks_markdown, markdown_table, verdict_markdown
from tasks.storage.remote_sources import hub_model

PIPELINES = {
    "text-classification": "text-classification",
    "completion": "text-generation",
    "instruction": "text-generation",
    "preference": "text-generation",
}
"""What the Hub calls each task (https://huggingface.co/docs/hub/models-tasks)."""
PURPOSES = {
    "completion": "to continue texts",
    "instruction": "to answer in chat",
    "preference": "to give the answers that people prefer (DPO)",
}


TOO_LONG = {"truncate": "truncated", "drop": "left out", "split": "split"}


def model_card(inputs: ReleaseInputs, base_license: str) -> str:
    """A model card in the Hub's format (https://huggingface.co/docs/hub/model-cards).

    It does not say when or where it was written: the same release has the same card.

    Args:
        inputs: What the release is made of.
        base_license: As the base model's card states it; empty if unknown.
    """
    front = yaml.safe_dump(_front_matter(inputs, base_license), sort_keys=False)
    return f"---\n{front}---\n\n{_body(inputs)}"


def _front_matter(inputs: ReleaseInputs, base_license: str) -> dict:
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": PIPELINES[inputs.task],
        "tags": ["burnish", "lora" if inputs.quantization == "none" else "qlora"],
    }
    if base := hub_model(inputs.base.uri):
        front["base_model"] = base[0]
    if known := inputs.publish.license or base_license:
        front["license"] = known
    if inputs.publish.languages:
        front["language"] = list(inputs.publish.languages)
    metrics = inputs.candidate.scored.metrics
    front["model-index"] = [
        {
            "name": inputs.name,
            "results": [
                {
                    "task": {"type": PIPELINES[inputs.task]},
                    "dataset": {"name": ", ".join(_public_names(inputs.data)), "type": "custom"},
                    "metrics": [
                        {"type": name, "value": round(value, 4)} for name, value in metrics.items()
                    ],
                }
            ],
        }
    ]
    return front


def _body(inputs: ReleaseInputs) -> str:
    candidate, training = inputs.candidate, inputs.training
    rows = candidate.loaded.rows
    metrics = [(name, f"{value:.4f}") for name, value in candidate.scored.metrics.items()]
    return f"""# {inputs.name}

Fine-tuned from `{public_name(inputs.base.uri)}` {_purpose(inputs)}.

## Use

{_usage(inputs)}

## Metrics on {rows["test"]} test examples

{markdown_table(("metric", "value"), metrics)}

## Verdict

{verdict_markdown(candidate.gate_result.verdict)}
{_optional_results(candidate)}{_warnings(candidate)}
## Data

`{"`, `".join(_public_names(inputs.data))}` (digest `{candidate.data.digest[:12]}`):
{rows["train"]} training, {rows["validation"]} validation and {rows["test"]} test examples, split by
{inputs.data.split.by}. Duplicates were dropped. The validation examples choose the epoch. Inputs of
more than {training.max_length:,} tokens were {TOO_LONG[training.too_long]}.

## Training

LoRA of rank {inputs.lora.r} on a base in {_precision(inputs)}, at most {training.epochs} epochs,
learning rate {training.learning_rate:g}, seed {training.seed}. What ships: {inputs.base.ship}.\
{_gguf(inputs.base.gguf)}

## Provenance

Model `{candidate.finetuned.artifact.digest}`, base model `{candidate.model.digest[:12]}`, recipe
`{inputs.recipe_digest[:12]}`, training key `{candidate.finetuned.key[:12]}`.{_libraries(candidate)}
"""


def public_name(uri: str) -> str:
    """A URI as a card shows it: of a local file or folder, only its name."""
    if uri.startswith(("hf://", "s3://", "package:")):
        return uri
    return Path(uri).name or uri


def _public_names(data: DataRecipe) -> list[str]:
    return [public_name(uri) for uri in data.uris]


def _usage(inputs: ReleaseInputs) -> str:
    """Code that uses the release, also on texts that are longer than the model's limit."""
    length, pipeline = inputs.training.max_length, PIPELINES[inputs.task]
    note = "Replace `MODEL` by the repository or folder that this card is in."
    if inputs.task == "text-classification":
        code = f"""from transformers import pipeline

classify = pipeline("{pipeline}", model="MODEL")
classify("A text.", truncation=True, max_length={length})"""
    else:
        given = '"The beginning of a text"'
        if inputs.task != "completion":
            given = '[{"role": "user", "content": "A question?"}]'
        code = f"""from transformers import pipeline

generate = pipeline("{pipeline}", model="MODEL")
generate({given}, max_new_tokens=100)"""
    if inputs.base.ship == "adapter":
        note += " It is an adapter: the package `peft` must be installed."
    return f"```python\n{code}\n```\n\n{note}"


def _warnings(candidate: Candidate) -> str:
    steps = (candidate.loaded, candidate.inspected, candidate.tokenized, candidate.finetuned)
    found = dict.fromkeys(warning for step in steps for warning in step.warnings)
    if not found:
        return ""
    return "\n## Warnings\n\n" + "".join(f"- {warning}.\n" for warning in found)


def _libraries(candidate: Candidate) -> str:
    provenance = candidate.finetuned.provenance
    if provenance is None:
        return ""
    versions = ", ".join(f"{name} {version}" for name, version in provenance.libraries.items())
    return f"\nTrained with {versions}."


def _optional_results(candidate: Candidate) -> str:
    """Results that only some recipes have: guard set, LLM judge, benchmarks."""
    text = ""
    if guard := candidate.guard:
        text += (
            f"\nGuard set: `{public_name(guard.source.uri)}` (digest "
            f"`{guard.source.digest[:12]}`), {guard.loaded.rows['test']} examples.\n"
        )
    if compared := candidate.compared:
        text += (
            f"\nThe LLM judge `{compared.llm_judge}` preferred its answers {compared.wins} times, "
            f"the baseline's {compared.losses} times, and neither {compared.ties} times.\n"
        )
    if candidate.benchmarks:
        table = benchmarks_markdown(candidate.benchmarks, candidate.benchmark_baseline)
        text += f"\n## Benchmarks\n\n{table}\n"
    return text


def _gguf(kind: str) -> str:
    if kind == "none":
        return ""
    rounded = "" if kind == "f32" else f", and its weights are rounded to {kind}"
    return f"""

## GGUF

`model-{kind}.gguf` is the same model for llama.cpp and Ollama (`ollama create NAME -f Modelfile`).
The metrics and the verdict above are those of the model in safetensors; the GGUF file was not
scored{rounded}."""


def _purpose(inputs: ReleaseInputs) -> str:
    labels = inputs.candidate.loaded.labels
    if not labels:
        return PURPOSES[inputs.task]
    named = ", ".join(f"`{label}`" for label in labels)
    return f"to classify texts into {len(labels)} labels:\n{named}"


def _precision(inputs: ReleaseInputs) -> str:
    precision = inputs.candidate.plan.precision
    return f"nf4, computing in {precision}" if inputs.quantization == "nf4" else precision
