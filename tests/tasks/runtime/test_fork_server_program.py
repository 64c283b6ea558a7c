"""What a forked program computes: the same as a fresh process."""

import json
from importlib.util import find_spec

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.contracts import jobs
from tasks.contracts.plan import Plan
from tasks.contracts.recipe_training import LoraRecipe
from tasks.runtime import fork_server
from tasks.runtime.gguf_converter import find_converter
from tasks.runtime.run_program import run_program
from tests.tasks.base_model.gguf_files import write_gguf
from tests.tasks.runtime.programs import AnyJob, AnyResult
from tests.tasks.samples import write_jsonl

pytestmark = pytest.mark.skipif(not fork_server.can_fork(), reason="programs are not forked here")

THREADS = """
import threading
import numpy as np, pyarrow as pa, pyarrow.compute as pc, tokenizers, torch
from tests.tasks.runtime.programs import run

def main(job, reporter):
    assert job["loaded"] == ("transformers.trainer" in __import__("sys").modules)
    torch.manual_seed(0)
    a = torch.rand(600, 600, requires_grad=True)
    (a @ a).tanh().sum().backward()
    b = np.random.default_rng(0).random((600, 600))
    column = pa.chunked_array([pa.array(range(50_000))] * 20)
    table = pa.table({"a": column}).sort_by([("a", "descending")])
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="b"))
    encoded = tokenizer.encode_batch(["a", "b", "c"] * 1000)
    assert threading.active_count() == 3
    return {
        "threads": [torch.get_num_threads(), pa.cpu_count()],
        "torch": a.grad.sum().item(),
        "numpy": float((b @ b).sum()),
        "arrow": pc.sum(table["a"][:5]).as_py(),
        "tokenizers": sum(each.ids[0] for each in encoded),
    }

run(main)
"""


@pytest.fixture
def language_job(tmp_path, tiny_lm):
    """Makes a small job for a language-model program, which writes below the given folder; returns
    it with its result's model."""
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"Say {n}"},
                {"role": "assistant", "content": "ab " * (1 + n % 5)},
            ]
        }
        for n in range(20)
    ]
    table = {
        "text": [f"input {n}" for n in range(20)],
        "example": [json.dumps(chat, sort_keys=True) for chat in chats],
        "label": [""] * 20,
        "hash_hi": pa.array(range(20), pa.uint64()),
        "hash_lo": pa.array(range(20), pa.uint64()),
    }
    rows = tmp_path / "rows.parquet"
    pq.write_table(pa.table(table), rows)
    plan = Plan(device="cpu", precision="fp32", attention="packed", packing=True)
    model = {
        "model": tiny_lm,
        "kind": "merged",
        "base": None,
        "quantization": "none",
        "tokenizer": None,
        "device": "cpu",
    }

    def make(name, out):
        (out / "out").mkdir(parents=True)
        makers = {
            "tokenize.language_program": lambda: (
                jobs.TokenizeLanguageJob(
                    tokenizer=tiny_lm,
                    task="instruction",
                    max_length=64,
                    too_long="truncate",
                    shards=[jobs.RowShard(digest="5" * 64, rows=rows, out=out / "out")],
                ),
                jobs.Done,
            ),
            "evaluate.language_program": lambda: (
                jobs.ScoreLanguageJob(
                    **model,
                    max_length=64,
                    task="instruction",
                    examples=rows,
                    generate_tokens=4,
                    must_match="",
                    must_not_contain=(),
                    json_schema="",
                    beta=0.1,
                    batch_size=8,
                    measure_latency=False,
                    check=None,
                    out=out / "out" / "scores.parquet",
                ),
                jobs.ScoreResult,
            ),
            "plan.forecast_program": lambda: (
                jobs.ForecastJob(
                    base=tiny_lm,
                    lora=LoraRecipe(),
                    quantization="nf4",
                    plan=plan,
                    ship="merged",
                    checkpointing="auto",
                    micro_batch_tokens=0,
                    max_length=64,
                    longest_example=64,
                    step_tokens=256,
                    target_share=0.5,
                    memory=8 * 10**9,
                    host_memory=8 * 10**9,
                    stored_bytes=4,
                ),
                jobs.ForecastResult,
            ),
            "base_model.gguf_program": lambda: (
                jobs.ConvertGgufJob(files=[write_gguf(tmp_path / "m.gguf")], out=out / "out"),
                jobs.ConvertGgufResult,
            ),
            "finetune.gguf_export_program": lambda: (
                jobs.ExportGgufJob(
                    converter=find_converter(),
                    file_type="q8_0",
                    model=tiny_lm,
                    work=out,
                    out=out / "out",
                ),
                jobs.ExportGgufResult,
            ),
            "evaluate.benchmark_program": lambda: (
                jobs.BenchmarkJob(
                    **model,
                    tasks=["ships"],
                    folder=own_task(tmp_path / "own"),
                    limit=0,
                    chat=False,
                    batch_size=4,
                ),
                jobs.BenchmarkResult,
            ),
        }
        return makers[name]()

    return make


def own_task(folder):
    """A folder with a task for lm-evaluation-harness."""
    from tests.tasks.evaluate.samples import SHIP_ROWS
    from tests.tasks.samples import SHIPS

    write_jsonl(folder / "ships.jsonl", SHIP_ROWS)
    (folder / "ships.yaml").write_text(json.dumps(SHIPS))
    return folder


class TestPrograms:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "name",
        [
            "tokenize.language_program",
            "evaluate.language_program",
            "plan.forecast_program",
            "base_model.gguf_program",
            pytest.param(
                "finetune.gguf_export_program",
                marks=pytest.mark.skipif(not find_converter(), reason="needs the converter"),
            ),
            pytest.param(
                "evaluate.benchmark_program",
                marks=pytest.mark.skipif(not find_spec("lm_eval"), reason="needs the extra"),
            ),
        ],
    )
    def test_a_fork_gives_the_same_result_as_a_fresh_process(
        self, language_job, tmp_path, monkeypatch, name
    ):
        found = []
        for setting in ("on", "off"):
            monkeypatch.setenv("BURNISH_FORK_SERVER", setting)
            job, result_type = language_job(name, tmp_path / setting)
            result = run_program(f"tasks.{name}", job, result_type, scratch=tmp_path / "s")
            files = sorted((tmp_path / setting / "out").rglob("*"))
            found.append((result, [(file.name, file.read_bytes()) for file in files]))
        assert found[0] == found[1]
        result, files = found[0]
        assert result != jobs.Done() or files


class TestThreads:
    def test_libraries_compute_with_threads_as_in_a_fresh_process(self, tmp_path, monkeypatch):
        (tmp_path / "in_threads.py").write_text(THREADS)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        libraries = fork_server.LIBRARIES["tasks.finetune.program"]
        monkeypatch.setitem(fork_server.LIBRARIES, "in_threads", libraries)
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            monkeypatch.setenv(name, "2")
        found = []
        for setting in ("on", "on", "off"):
            monkeypatch.setenv("BURNISH_FORK_SERVER", setting)
            job = AnyJob(values={"loaded": setting == "on"})
            options = {"scratch": tmp_path / "s", "time_limit": 120}
            found.append(run_program("in_threads", job, AnyResult, **options))
        assert found[0] == found[1] == found[2]
        assert found[0].values["threads"][0] == 2
