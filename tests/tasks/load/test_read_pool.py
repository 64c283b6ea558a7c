"""Reading in worker processes gives what reading in this process gives."""

from __future__ import annotations

import pytest

from tasks.contracts.errors import BadData
from tasks.load import read_pool
from tests.tasks.samples import load_data, run_context, some_rows, write_jsonl


def fail(parent: int) -> None:
    """Fail where a worker process is initialized."""
    raise RuntimeError("It cannot start")


class TestReadPool:
    def test_worker_processes_give_the_same_artifact(self, tmp_path, monkeypatch):
        rows = [
            {"text": f"{row['text']} " * 5 + str(n), "label": row["label"]}
            for n in range(4)
            for row in some_rows(1000)
        ]
        write_jsonl(tmp_path / "a.jsonl", rows)
        in_process = load_data(tmp_path / "a.jsonl", run_context(tmp_path / "1"))
        monkeypatch.setattr(read_pool, "IN_PROCESS_BYTES", 1)
        monkeypatch.setattr(read_pool, "QUEUE_BYTES", 1_000_000)
        pooled = load_data(tmp_path / "a.jsonl", run_context(tmp_path / "2"))
        assert pooled.new_shards > 1
        assert pooled.artifact.digest == in_process.artifact.digest

    def test_workers_that_cannot_start_are_replaced_by_this_process(self, tmp_path, monkeypatch):
        monkeypatch.setattr(read_pool, "IN_PROCESS_BYTES", 1)
        monkeypatch.setattr(read_pool, "exit_with_parent", fail)
        path = write_jsonl(tmp_path / "a.jsonl", some_rows(400))
        assert sum(load_data(path, run_context(tmp_path)).rows.values()) == 400

    def test_a_worker_process_reports_the_bad_row(self, tmp_path, monkeypatch):
        monkeypatch.setattr(read_pool, "IN_PROCESS_BYTES", 1)
        path = write_jsonl(tmp_path / "a.jsonl", [*some_rows(50), {"text": "no label"}])
        with pytest.raises(BadData, match=r"a\.jsonl:51: found no column 'label'"):
            load_data(path, run_context(tmp_path))
