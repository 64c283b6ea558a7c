"""The fork server: when it starts and ends, and what its programs inherit."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.contracts import jobs
from tasks.contracts.errors import CodeFailed, OutOfHostMemory, TimedOut
from tasks.contracts.plan import Plan
from tasks.contracts.recipe_training import LoraRecipe
from tasks.runtime import fork_server
from tasks.runtime.gguf_converter import find_converter
from tasks.runtime.run_program import ROOT, preload, run_program
from tests.tasks.base_model.test_gguf_step import write_gguf
from tests.tasks.runtime.programs import AnyJob, AnyResult
from tests.tasks.runtime.test_run_program import HEADER, gone
from tests.tasks.samples import write_jsonl

pytestmark = pytest.mark.skipif(not fork_server.can_fork(), reason="programs are not forked here")

PROGRAM = f"""{HEADER}
def main(job, reporter):
    reporter.progress(always=True, pid=os.getpid(), parent=os.getppid())
    open(job["began"], "w").close()
    while job.get("until") and not os.path.exists(job["until"]):
        time.sleep(0.01)
    descriptors = os.listdir("/proc/self/fd")
    return {{"pid": os.getpid(), "parent": os.getppid(), "descriptors": descriptors}}

run(main)
"""
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
    assert threading.active_count() == 2
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
def folder(tmp_path, monkeypatch):
    """A folder with the program `follower`; the fork server loads no libraries."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(fork_server, "LIBRARIES", {})
    (tmp_path / "follower.py").write_text(PROGRAM)
    return tmp_path


@pytest.fixture
def follow(folder):
    """Runs `follower`, by default until the file `<name>-end` exists."""

    def run(name="one", until=True, **options):
        job = {"began": str(folder / f"{name}-began")}
        if until:
            job["until"] = str(folder / f"{name}-end")
        job = AnyJob(values=job)
        return run_program("follower", job, AnyResult, scratch=folder / name, **options).values

    return run


class InBackground(threading.Thread):
    """A call in a thread of its own."""

    def __init__(self, call, *arguments, **options):
        super().__init__()
        self.call, self.arguments, self.options = call, arguments, options
        self.result = self.error = None
        self.start()

    def run(self):
        try:
            self.result = self.call(*self.arguments, **self.options)
        except Exception as error:
            self.error = error


def appears(path, seconds=60.0):
    """Wait until a file is there."""
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} has not appeared"
        time.sleep(0.01)


class TestTheServer:
    def test_forks_one_program_after_the_other(self, follow):
        first, second = follow("one", until=False), follow("two", until=False)
        assert first["parent"] == second["parent"] == fork_server.current_server().process.pid
        assert first["pid"] != second["pid"]

    def test_forks_two_at_once_and_neither_holds_the_files_of_the_other(self, follow, folder):
        one = InBackground(follow, "one")
        appears(folder / "one-began")
        two = follow("two", until=False)
        (folder / "one-end").touch()
        one.join()
        assert one.result["parent"] == two["parent"]
        assert len(two["descriptors"]) <= len(one.result["descriptors"])

    def test_is_replaced_when_the_environment_changes_and_ends_after_its_last_program(
        self, follow, folder, monkeypatch
    ):
        one = InBackground(follow, "one")
        appears(folder / "one-began")
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        two = follow("two", until=False)
        (folder / "one-end").touch()
        one.join()
        assert one.result["parent"] != two["parent"]
        assert gone(one.result["parent"])

    def test_can_be_started_in_advance(self, follow):
        preload()
        pid = fork_server.current_server().process.pid
        assert follow(until=False)["parent"] == pid

    def test_can_be_turned_off(self, follow, monkeypatch):
        monkeypatch.setenv("BURNISH_FORK_SERVER", "off")
        before = fork_server.current_server()
        preload()
        assert follow(until=False)["parent"] == os.getpid()
        assert fork_server.current_server() is before

    def test_is_not_used_where_there_is_a_gpu(self, follow, monkeypatch):
        monkeypatch.setattr(fork_server, "has_gpu", lambda: True)
        fork_server.can_fork.cache_clear()
        try:
            assert follow(until=False)["parent"] == os.getpid()
        finally:
            fork_server.can_fork.cache_clear()

    def test_ignores_signals_that_are_meant_for_its_programs(self, follow):
        pid = follow(until=False)["parent"]
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(pid, number)
        assert follow("two", until=False)["parent"] == pid

    def test_is_not_shared_with_a_process_that_this_one_forks(self, follow):
        server = follow(until=False)["parent"]
        pid = os.fork()
        if not pid:
            signal.alarm(60)
            preload()
            os._exit(int(fork_server.current_server().process.pid == server))
        assert os.waitpid(pid, 0)[1] == 0
        assert follow("two", until=False)["parent"] == server


class TestEnds:
    def test_a_killed_server_takes_its_program_with_it_and_is_replaced(self, follow):
        seen = []

        def kill(facts):
            seen.append(facts)
            os.kill(facts["parent"], signal.SIGKILL)

        with pytest.raises(OutOfHostMemory):
            follow("one", on_progress=kill)
        # The program is an orphan now: another process reaps it, perhaps later.
        assert gone(seen[0]["pid"]) and gone(seen[0]["parent"])
        assert follow("two", until=False)["parent"] != seen[0]["parent"]

    def test_a_crash_of_the_server_is_reported_with_its_signal(self, follow):
        with pytest.raises(CodeFailed, match="SIGABRT"):
            follow(on_progress=lambda facts: os.kill(facts["parent"], signal.SIGABRT))

    def test_a_program_that_timed_out_while_the_server_was_busy_never_starts(self, follow, folder):
        pid = follow("one", until=False)["parent"]
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(TimedOut):
                follow("two", until=False, time_limit=0.5)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert follow("three", until=False)["parent"] == pid
        assert not (folder / "two-began").exists()

    @pytest.mark.parametrize("how", ["killed", "finished"])
    def test_the_server_ends_with_its_parent(self, folder, how):
        code = (
            "import sys; from pathlib import Path; from tasks.runtime import fork_server\n"
            "fork_server.LIBRARIES = {}\n"
            "from tasks.runtime.run_program import run_program\n"
            "from tests.tasks.runtime.programs import AnyJob, AnyResult\n"
            f"job = AnyJob(values={{'began': {str(folder / 'began')!r}}})\n"
            f"found = run_program('follower', job, AnyResult, scratch=Path({str(folder)!r}))\n"
            "print(found.values['parent'], flush=True)\n"
            f"{'import time; time.sleep(60)' if how == 'killed' else ''}"
        )
        paths = os.pathsep.join([str(ROOT), str(folder)])
        parent = subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": paths},
            stdout=subprocess.PIPE,
        )
        pid = int(parent.stdout.readline())
        if how == "killed":
            parent.kill()
        parent.wait()
        parent.stdout.close()
        assert gone(pid)


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
    from tests.tasks.evaluate.test_benchmark_program import ROWS
    from tests.tasks.samples import SHIPS

    write_jsonl(folder / "ships.jsonl", ROWS)
    (folder / "ships.yaml").write_text(json.dumps(SHIPS))
    return folder


class TestPrograms:
    def test_each_has_its_libraries_declared_or_is_fresh(self):
        found = {
            ".".join(file.relative_to(ROOT).with_suffix("").parts)
            for file in (ROOT / "tasks").glob("*/*program.py")
            if file.parent.name != "runtime"
        }
        assert found == fork_server.LIBRARIES.keys() | fork_server.FRESH

    def test_a_fresh_one_is_not_forked(self, follow, monkeypatch):
        monkeypatch.setattr(fork_server, "FRESH", {"follower"})
        assert follow(until=False)["parent"] == os.getpid()

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
