"""Programs that are given as the body of their main function."""

import textwrap

import pytest

from tasks.runtime import fork_server
from tasks.runtime.run_program import run_program
from tests.tasks.runtime.programs import HEADER, AnyJob, AnyResult


@pytest.fixture(params=["fresh", "forked"])
def way(request, monkeypatch):
    """How programs get their processes: fresh, or as forks of a server without libraries."""
    if request.param == "fresh":
        monkeypatch.setenv("BURNISH_FORK_SERVER", "off")
    elif not fork_server.can_fork():
        pytest.skip("programs are not forked here")
    monkeypatch.setattr(fork_server, "LIBRARIES", {})
    return request.param


@pytest.fixture
def program(tmp_path, monkeypatch, way):
    """Runs a program that is given as the body of its main function."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(body, job=None, graceful=False, **options):
        indented = textwrap.indent(textwrap.dedent(body).strip(), "    ")
        source = f"{HEADER}def main(job, reporter):\n{indented}\nrun(main, graceful={graceful})\n"
        (tmp_path / "made_up_program.py").write_text(source)
        job = AnyJob(values=job or {})
        scratch = tmp_path / "scratch"
        return run_program("made_up_program", job, AnyResult, scratch=scratch, **options).values

    return run
