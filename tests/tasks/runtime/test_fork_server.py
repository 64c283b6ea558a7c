"""The fork server: when it starts and ends, and which programs it forks."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from tasks.contracts.errors import CodeFailed, OutOfHostMemory, TimedOut
from tasks.runtime import fork_server
from tasks.runtime.run_program import ROOT, preload, run_program
from tests.tasks.runtime.programs import HEADER, AnyJob, AnyResult, gone, wait_until

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


class TestServer:
    def test_forks_one_program_after_the_other(self, follow):
        first, second = follow("one", until=False), follow("two", until=False)
        assert first["parent"] == second["parent"] == fork_server.current_server().process.pid
        assert first["pid"] != second["pid"]

    def test_forks_two_at_once_and_neither_holds_the_files_of_the_other(self, follow, folder):
        one = InBackground(follow, "one")
        wait_until((folder / "one-began").exists)
        two = follow("two", until=False)
        (folder / "one-end").touch()
        one.join()
        assert one.result["parent"] == two["parent"]
        assert len(two["descriptors"]) <= len(one.result["descriptors"])

    def test_is_replaced_when_the_environment_changes_and_ends_after_its_last_program(
        self, follow, folder, monkeypatch
    ):
        one = InBackground(follow, "one")
        wait_until((folder / "one-began").exists)
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
            f"{'import time; time.sleep(3600)' if how == 'killed' else ''}"
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
