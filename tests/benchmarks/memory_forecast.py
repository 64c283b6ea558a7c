"""How close the forecast of a language model's training memory is to the measured peak:
`python -m tests.benchmarks.memory_forecast [SHAPE…]`.

Each condition trains in its own process, with the functions of `tasks.finetune.program`, on a model
with random weights. Its peak (on a GPU: the allocator's; on a CPU: resident memory above that
before the model was read) is compared with the forecast, which another process made from the
model's configuration alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import ROOT, table, write
from tests.benchmarks.memory_forecast_child import DROPOUT, LONGEST

SHAPES: dict[str, dict[str, int]] = {
    "6M": {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 1024,
        "vocab_size": 8192,
    },
    "135M": {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
    },
    "284M": {
        "hidden_size": 1024,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "intermediate_size": 4096,
        "vocab_size": 32000,
    },
    # Llama 3.2 1B's, for a GPU.
    "1B": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 128256,
    },
}
ON_CPU = ("6M", "135M", "284M")
TOKENS = {"6M": 4096, "135M": 1024, "284M": 1024, "1B": 8192}
METHODS = {"LoRA": "none", "QLoRA nf4": "nf4"}
MIB = 2**20


def main() -> None:
    """Measure, compare, write down."""
    names = sys.argv[1:] or ON_CPU
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            base = Path(folder) / name
            make_model(name, base)
            for method, quantization in METHODS.items():
                for checkpointing in (False, True):
                    spec = {
                        "base": str(base),
                        "tokens": TOKENS[name],
                        "quantization": quantization,
                        "checkpointing": checkpointing,
                        "work": str(Path(folder) / "work"),
                    }
                    rows.append({"shape": name, "method": method, **compare(spec)})
                    print(rows[-1], flush=True)
    worst = max(abs(row["error"]) for row in rows)
    body = [
        f"Llama shapes, bf16, LoRA r 16 on all linear layers, dropout {DROPOUT:g}, examples of "
        f"{LONGEST} tokens; {', '.join(f'{name}: {TOKENS[name]:,} tokens' for name in names)} in "
        "one micro-batch. MiB above what the process had before it read the model; the fullest "
        "moment of training, reading the model left out. *as glibc does*: the same training with "
        "the allocator's defaults instead of `tight_memory`.",
        f"Largest error: {worst:.1%}.",
        table(
            (
                "model",
                "method",
                "checkpointing",
                "forecast",
                "measured",
                "error",
                "as glibc does",
                "reading the model",
            ),
            [
                (
                    row["shape"],
                    row["method"],
                    "on" if row["checkpointing"] else "off",
                    f"{row['forecast'] / MIB:,.0f}",
                    f"{row['measured'] / MIB:,.0f}",
                    f"{row['error']:+.1%}",
                    f"{row['loose'] / MIB:,.0f}" if row["loose"] else "",
                    f"{row['reading'] / MIB:,.0f}",
                )
                for row in rows
            ],
        ),
        "By part, as forecast (MiB):",
        parts_table(rows),
    ]
    report = {"rows": rows, "worst": worst, "shapes": {name: SHAPES[name] for name in names}}
    write("memory_forecast", "Memory forecast", report, body)


def parts_table(rows: list[dict[str, Any]]) -> str:
    """What each forecast is made of."""
    names = list(rows[0]["parts"])
    return table(
        ("model", "method", "checkpointing", *names),
        [
            (
                row["shape"],
                row["method"],
                "on" if row["checkpointing"] else "off",
                *(f"{row['parts'][name] / MIB:,.1f}" for name in names),
            )
            for row in rows
        ],
    )


def compare(spec: dict[str, Any]) -> dict[str, Any]:
    """Forecast and measurement of one condition, in bytes.

    Args:
        spec: `base`, `tokens`, `quantization`, `checkpointing`, and a folder for `work`.
    """
    forecast = child("forecast", spec)
    tight = child("measure", {**spec, "tight": True})
    loose = child("measure", {**spec, "tight": False}) if not tight["cuda"] else {"peak": 0}
    total = sum(forecast["parts"].values())
    return {
        "checkpointing": spec["checkpointing"],
        "tokens": spec["tokens"],
        "forecast": total,
        "parts": forecast["parts"],
        "measured": tight["peak"],
        "error": total / tight["peak"] - 1,
        "loose": loose["peak"],
        "reading": tight["reading"],
    }


def child(what: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Run `forecast` or `measure` in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.memory_forecast_child", what, json.dumps(spec)],
        cwd=ROOT,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def make_model(name: str, folder: Path) -> None:
    """A model of random weights, in bf16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SHAPES[name], tie_word_embeddings=True, max_position_embeddings=8192)
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    main()
