"""The server that the command line talks to."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows.prefect_server import lasting_server, record_server, running_server, some_server
from tasks.contracts.errors import NotFound
from tests.waiting import wait_for


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A machine on which Prefect is not configured for any server."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with temporary_settings({PREFECT_HOME: tmp_path}, restore_defaults={PREFECT_API_URL}):
        yield tmp_path


class TestServer:
    def test_of_prefect_s_configuration_comes_first(self, prefect_env, tmp_path):
        record_server(tmp_path, "http://127.0.0.1:1/api")
        with temporary_settings({PREFECT_HOME: tmp_path}), some_server():
            assert PREFECT_API_URL.value() == prefect_env.url

    def test_of_make_server_is_found_while_it_runs(self, home, prefect_server):
        record_server(home, prefect_server.url)
        with lasting_server():
            assert PREFECT_API_URL.value() == prefect_server.url

    def test_that_was_stopped_is_not_taken_for_a_running_one(self, home):
        record_server(home, "http://127.0.0.1:1/api")
        assert running_server(home) == ""
        with pytest.raises(NotFound, match="run `make server`"), lasting_server():
            pass

    def test_a_damaged_record_is_no_server(self, home):
        (home / "burnish-server.json").write_text("{")
        assert running_server(home) == ""


@pytest.mark.slow
class TestTemporaryServer:
    def test_has_a_database_of_its_own_and_ends_with_the_block(self, home):
        with some_server():
            api = PREFECT_API_URL.value()
            with get_client(sync_client=True) as client:
                assert client.read_flows() == []
            assert (home / "burnish" / "prefect.db").exists()
            assert not (home / "prefect.db").exists()
        record_server(home, api)
        assert running_server(home) == ""

    def test_ends_when_its_command_is_killed(self, home):
        code = """
            import time
            from flows.prefect_server import some_server
            with some_server():
                print("up", flush=True)
                time.sleep(600)
        """
        command = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, "PREFECT_HOME": str(home)},
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert command.stdout.readline() == b"up\n"
        (server,) = psutil.Process(command.pid).children()
        command.send_signal(signal.SIGKILL)
        command.wait()
        wait_for(lambda: not server.is_running(), "the end of the server")
