"""Running a program: its result, and the error for each way in which it may end."""

import os
import subprocess
import sys

import pytest

from tasks.contracts import jobs
from tasks.contracts.errors import (
    BadData,
    CodeFailed,
    OutOfHostMemory,
    Preempted,
    TimedOut,
)
from tasks.runtime.run_program import ROOT, child_environment, run_program
from tests.tasks.runtime.programs import HEADER, AnyJob, AnyResult, gone, wait_until


class Interrupt:
    """A progress callback that interrupts the call, and keeps what was reported."""

    facts = None

    def __call__(self, facts):
        if self.facts is None:
            self.facts = facts
            raise KeyboardInterrupt


class TestSuccess:
    def test_process_is_fresh_or_forked_as_configured(self, program, way):
        assert program("return {'parent': os.getppid() == job['pid']}", {"pid": os.getpid()}) == {
            "parent": way == "fresh"
        }

    def test_program_is_the_main_module_with_its_job_as_argument(self, program):
        body = """
            me = sys.modules["__main__"]
            return {"name": me.__name__, "job": sys.argv[1:], "file": me.__file__ == sys.argv[0]}
        """
        found = program(body)
        assert found["name"] == "__main__" and found["file"]
        assert [os.path.basename(word) for word in found["job"]] == ["made-up.job.json"]

    def test_result_is_returned(self, program):
        assert program("return {'twice': 2 * job['n']}", {"n": 21}) == {"twice": 42}

    def test_progress_arrives_in_order_and_while_the_program_runs(self, program, tmp_path):
        seen = []
        body = """
            for step in range(3):
                reporter.progress(always=True, step=step)
                while not os.path.exists(job["folder"] + f"/seen-{step}"):
                    time.sleep(0.01)
            return {}
        """

        def note(facts):
            seen.append(facts)
            (tmp_path / f"seen-{facts['step']}").touch()

        program(body, {"folder": str(tmp_path)}, on_progress=note)
        assert seen == [{"step": 0}, {"step": 1}, {"step": 2}]

    def test_printing_does_not_break_the_protocol(self, program):
        body = """
            print("a library says hello")
            os.write(1, b'{"event": "result", "result": {"forged": true}}')
            os.system("echo so does a command")
            return {"honest": True}
        """
        assert program(body) == {"honest": True}

    def test_a_large_result_is_returned(self, program):
        assert len(program("return {'text': 'x' * 3_000_000}")["text"]) == 3_000_000


class TestWrongTypes:
    def test_job_of_another_type_is_refused_by_its_field(self, program, tmp_path):
        program("return {}")
        wrong = jobs.Done()
        with pytest.raises(CodeFailed, match=r"job made-up\.job\.json, field values") as caught:
            run_program("made_up_program", wrong, AnyResult, scratch=tmp_path / "scratch")
        assert "Field required" in caught.value.found
        assert caught.value.expected == "a valid AnyJob"

    def test_result_of_another_type_is_refused_by_its_field(self, program, tmp_path):
        program("return {}")
        job, scratch = AnyJob(values={}), tmp_path / "scratch"
        with pytest.raises(CodeFailed, match="result of program made-up, field architecture"):
            run_program("made_up_program", job, jobs.ConvertGgufResult, scratch=scratch)


class TestFailure:
    def test_typed_error_is_raised(self, program):
        body = """
            from tasks.contracts.errors import BadData
            raise BadData("row 3", "no label", "a label", "add one")
        """
        with pytest.raises(BadData) as caught:
            program(body)
        assert (caught.value.where, caught.value.fix) == ("row 3", "add one")

    def test_defect_is_reported_with_the_end_of_the_log(self, program):
        with pytest.raises(CodeFailed) as caught:
            program("print('about to fail'); return 1 / 0")
        assert "ZeroDivisionError: division by zero" in caught.value.found
        assert "about to fail" in caught.value.found

    def test_exit_without_a_result_is_reported_with_its_status(self, program):
        with pytest.raises(CodeFailed, match="exit status 3 and no result"):
            program("os._exit(3)")

    def test_program_that_does_not_exist_is_reported_with_the_log(self, way, tmp_path):
        with pytest.raises(CodeFailed, match=r"(?s)exit status 1 .*No module named .?no_such"):
            run_program("no_such_program", AnyJob(values={}), AnyResult, scratch=tmp_path)

    def test_early_exit_is_reported_with_its_status(self, way, tmp_path, monkeypatch):
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        (tmp_path / "leaves.py").write_text("raise SystemExit(7)")
        with pytest.raises(CodeFailed, match="exit status 7 and no result"):
            run_program("leaves", AnyJob(values={}), AnyResult, scratch=tmp_path)

    def test_crash_is_reported_with_its_signal(self, program):
        with pytest.raises(CodeFailed, match="SIGSEGV"):
            program("os.kill(os.getpid(), signal.SIGSEGV)")

    def test_sigkill_means_out_of_memory(self, program):
        with pytest.raises(OutOfHostMemory, match="memory ran out"):
            program("os.kill(os.getpid(), signal.SIGKILL)")

    def test_sigterm_means_preempted(self, program):
        with pytest.raises(Preempted):
            program("os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)")

    def test_sigterm_without_an_answer_means_preempted(self, program):
        body = """
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        """
        with pytest.raises(Preempted):
            program(body)

    def test_graceful_program_may_save_its_work(self, program):
        body = """
            from tasks.contracts.errors import preempted
            os.kill(os.getpid(), signal.SIGTERM)
            while not reporter.stopping:
                time.sleep(0.01)
            raise preempted("a checkpoint was saved")
        """
        with pytest.raises(Preempted, match="a checkpoint was saved"):
            program(body, graceful=True)


class TestTimeLimit:
    def test_error_names_the_recipe_field(self, program):
        with pytest.raises(TimedOut) as caught:
            program("time.sleep(3600)", time_limit=1.0, limit_name="training.time_limit_minutes")
        assert caught.value.where == "training.time_limit_minutes"

    def test_program_that_ignores_sigterm_is_killed(self, program, tmp_path):
        body = """
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            reporter.progress(pid=os.getpid())
            time.sleep(3600)
        """
        interrupt = Interrupt()
        with pytest.raises(KeyboardInterrupt):
            program(body, on_progress=interrupt, grace=0.5)
        assert gone(interrupt.facts["pid"])


class TestProgramThatIsStopped:
    def test_passes_on_what_it_reports_until_its_end(self, program):
        seen = []

        def note(facts):
            seen.append(facts)
            if len(seen) == 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            program(
                """
                reporter.progress(step=1)
                while not reporter.stopping:
                    time.sleep(0.05)
                time.sleep(1.0)
                reporter.progress(always=True, checkpoint='saved')
                raise RuntimeError
                """,
                graceful=True,
                on_progress=note,
            )
        assert seen == [{"step": 1}, {"stage": "stopping"}, {"checkpoint": "saved"}]


class TestParent:
    def test_interrupt_ends_the_program(self, program):
        interrupt = Interrupt()
        with pytest.raises(KeyboardInterrupt):
            program(
                "reporter.progress(pid=os.getpid()); time.sleep(3600); return {}",
                on_progress=interrupt,
            )
        assert gone(interrupt.facts["pid"])

    def test_program_ends_with_its_killed_parent(self, tmp_path, way):
        (tmp_path / "sleeper.py").write_text(
            f"{HEADER}def main(job, reporter):\n"
            "    open(job['pid'], 'w').write(str(os.getpid()))\n"
            "    time.sleep(3600)\n"
            "run(main)\n"
        )
        parent = (
            "from pathlib import Path; from tasks.runtime.run_program import run_program; "
            "from tests.tasks.runtime.programs import AnyJob, AnyResult; "
            f"job = AnyJob(values={{'pid': {str(tmp_path / 'pid')!r}}}); "
            f"run_program('sleeper', job, AnyResult, "
            f"scratch=Path({str(tmp_path)!r}))"
        )
        paths = os.pathsep.join([str(ROOT), str(tmp_path)])
        process = subprocess.Popen(
            [sys.executable, "-c", parent], env=os.environ | {"PYTHONPATH": paths}
        )
        pid = tmp_path / "pid"
        wait_until(lambda: pid.is_file() and pid.read_text())
        process.kill()
        process.wait()
        assert gone(int(pid.read_text()))

    def test_does_not_import_torch(self):
        modules = "tasks.runtime.run_program, tasks.runtime.program"
        code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0

    def test_program_stays_in_the_process_group(self, program):
        assert program("return {'group': os.getpgrp()}") == {"group": os.getpgrp()}

    def test_modules_in_the_working_directory_shadow_none(self, program, tmp_path, monkeypatch):
        (tmp_path / "here").mkdir()
        (tmp_path / "here" / "tokenize.py").write_text("raise SystemExit('shadowed')")
        monkeypatch.chdir(tmp_path / "here")
        assert program("return {'here': os.getcwd()}") == {"here": str(tmp_path / "here")}


class TestEnvironment:
    def test_holds_no_credentials(self, program, monkeypatch):
        secrets = {
            "HF_TOKEN": "a",
            "HF_TOKEN_PATH": "a",
            "HUGGING_FACE_HUB_TOKEN": "a",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_PROFILE": "a",
            "PREFECT_API_KEY": "a",
            "PREFECT_API_URL": "a",
            "my_password": "a",
            "WebhookSecret": "a",
            "OPENAI_API_KEY": "a",
            "GOOGLE_APPLICATION_CREDENTIALS": "a",
        }
        for name, value in secrets.items():
            monkeypatch.setenv(name, value)
        seen = program("return dict(os.environ)")
        assert not set(secrets) & set(seen)

    def test_is_that_of_the_moment_of_the_call(self, program, monkeypatch):
        for value in ("one", "two"):
            monkeypatch.setenv("BURNISH_SOMETHING", value)
            assert program("return dict(os.environ)")["BURNISH_SOMETHING"] == value

    def test_keeps_the_rest(self, monkeypatch):
        for name, value in {"CUDA_VISIBLE_DEVICES": "1", "GOMP_SPINCOUNT": "10000"}.items():
            monkeypatch.setenv(name, value)
            assert child_environment()[name] == value

    def test_is_offline_and_does_not_spin(self):
        found = child_environment()
        assert found["OMP_WAIT_POLICY"] == "PASSIVE"
        assert found["HF_HUB_OFFLINE"] == found["HF_DATASETS_OFFLINE"] == "1"
        assert found["DO_NOT_TRACK"] == "1"


class TestRanks:
    """Each test starts torch's elastic agent, which takes seconds."""

    @pytest.fixture
    def several(self, program, way):
        if way == "forked":
            pytest.skip("they are never forked")
        return lambda body, **options: program(body, processes=2, **options)

    def test_have_their_own_numbers_and_rank_0_returns_the_result(self, several, tmp_path):
        seen = []
        body = """
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
            found = [os.environ[name] for name in names]
            reporter.progress(always=True, rank=found[0])
            open(os.path.join(job["out"], found[0]), "w").close()
            return {"found": found}
        """
        result = several(body, job={"out": str(tmp_path)}, on_progress=seen.append)
        assert result == {"found": ["0", "2", "0"]}
        assert seen == [{"rank": "0"}]
        assert (tmp_path / "1").exists()

    def test_error_of_the_rank_that_fails_first_is_raised(self, several):
        body = """
            from tasks.contracts.errors import BadData
            if os.environ["RANK"] == "1":
                raise BadData("row 3", "no label", "a label", "add one")
            time.sleep(3600)
        """
        with pytest.raises(BadData, match="row 3"):
            several(body)

    def test_sigkill_of_one_rank_means_out_of_memory(self, several):
        body = """
            if os.environ["RANK"] == "1":
                time.sleep(0.5)
                os.kill(os.getpid(), signal.SIGKILL)
            for _ in range(6000):
                time.sleep(0.01)
                reporter.check_stop()
        """
        with pytest.raises(OutOfHostMemory):
            several(body, graceful=True)

    def test_request_to_stop_leaves_time_to_save(self, several, tmp_path):
        body = """
            from tasks.contracts.errors import preempted
            rank = int(os.environ["RANK"])
            mine, other = (os.path.join(job["out"], str(each)) for each in (rank, 1 - rank))
            open(mine, "w").write(str(os.getpid()))
            while not os.path.exists(other):
                time.sleep(0.01)
            reporter.progress(always=True)
            while not reporter.stopping:
                time.sleep(0.01)
            time.sleep(1)
            open(mine + "-saved", "w").close()
            raise preempted("a checkpoint was saved")
        """
        with pytest.raises(KeyboardInterrupt):
            several(body, job={"out": str(tmp_path)}, graceful=True, on_progress=Interrupt())
        assert {"0-saved", "1-saved"} <= {path.name for path in tmp_path.iterdir()}
        assert all(gone(int((tmp_path / rank).read_text())) for rank in "01")

    def test_ranks_end_with_the_parent(self, several, tmp_path, monkeypatch):
        (tmp_path / "sleeper.py").write_text(
            f"{HEADER}def main(job, reporter):\n"
            "    open(job['pid'] + os.environ['RANK'], 'w').write(str(os.getpid()))\n"
            "    time.sleep(3600)\n"
            "run(main)\n"
        )
        parent = (
            "from pathlib import Path; from tasks.runtime.run_program import run_program; "
            "from tests.tasks.runtime.programs import AnyJob, AnyResult; "
            f"job = AnyJob(values={{'pid': {str(tmp_path / 'pid')!r}}}); "
            f"run_program('sleeper', job, AnyResult, processes=2, "
            f"scratch=Path({str(tmp_path)!r}))"
        )
        paths = os.pathsep.join([str(ROOT), str(tmp_path)])
        process = subprocess.Popen(
            [sys.executable, "-c", parent], env=os.environ | {"PYTHONPATH": paths}
        )
        files = [tmp_path / f"pid{rank}" for rank in range(2)]
        wait_until(lambda: all(file.is_file() and file.read_text() for file in files))
        process.kill()
        process.wait()
        assert all(gone(int(file.read_text())) for file in files)
