"""What a run's page says of each fault, through a real deployment, and whether what it says works.

Made by `make fault-table`: one run for each case of tests/faults/fault_cases.py. The page alone
must name the cause, what became visible and what to do; the command on it is pasted into a shell.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.runbook import runbook
from tests.faults.fault_cases import CASES, NOT_MADE, Bench, Case
from tests.flows.conftest import reports_of
from tests.production import served as served_
from tests.production.served import Served, state_of
from tests.tiny_models import make_encoder
from tests.waiting import wait_for

FILE = Path(__file__).parent / "results" / "fault_table.json"
FIELDS = ("Cause", "Visible to consumers", "Next")


class Row(NamedTuple):
    """What was seen.

    Attributes:
        ends, fault: Of the case.
        cause, visible, next: What the page says.
        command: What was pasted; empty if a new run was started.
        after: How the run ended then.
        problems: What is wrong.
    """

    ends: str
    fault: str
    cause: str
    visible: str
    next: str
    command: str
    after: str
    problems: tuple[str, ...]


def try_case(name: str, case: Case, folder: Path, served: Served, base: Path) -> Row:
    """Make a fault, read the page, and do what it says."""
    bench = Bench(folder / name, served, base, case.changes)
    if case.before:
        case.before(bench)
    run_id = bench.start()
    if case.during:
        case.during(bench)
    state = served.ended(run_id)
    wait_for(lambda: ": Running" not in page_of(run_id).partition("\n")[0], "its report", 60)
    page = page_of(run_id)
    said = {each: _said(page, each) for each in FIELDS}
    held = state.name == "Held"
    problems = [] if state.name == case.ends else [f"it ended {state.name}: {state.message}"]
    problems += [f"the page has no '{each}'" for each in FIELDS if not said[each] and not held]
    if runbook()[case.ends].partition("\n")[0] not in page:
        problems.append("the page lacks the runbook's section")
    if case.mend:
        case.mend(bench)
    command = "" if held else _command(said["Next"])
    if command:
        # The worker's last word would overwrite a retry that is quicker.
        wait_for(lambda: state_of(run_id).is_final(), "its end")
        _paste(command, served)
        wait_for(lambda: not state_of(run_id).is_final(), "the retry", 60)
    else:
        run_id = bench.start()
    after = served.ended(run_id).name or ""
    if after != "Released":
        problems.append(f"it then ended {after}: {state_of(run_id).message}")
    visible = said["Visible to consumers"]
    return Row(
        case.ends,
        case.fault,
        said["Cause"],
        visible,
        said["Next"],
        command,
        after,
        tuple(problems),
    )


def page_of(run_id: object) -> str:
    """The newest report on a run's page."""
    return (reports_of(run_id) or [": Running"])[-1]


def _said(page: str, field: str) -> str:
    found = re.search(rf"\*\*{field}:\*\* (.+)", page)
    return found[1] if found else ""


def _command(sentence: str) -> str:
    found = re.search(r"`([^`]+)`", sentence)
    return found[1] if found else ""


def _paste(command: str, served: Served) -> None:
    program, *arguments = shlex.split(command)
    module = {"prefect": "prefect", "burnish": "flows.cli"}[program]
    environment = {**served.environment, "PREFECT_API_URL": served.api}
    subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )


def start_server(folder: Path) -> Served:
    """A server whose Hub cannot be reached."""
    return served_.start(folder, HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN="hf_none")


def main() -> None:
    """Try every case, and write the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("cases", nargs="*", help="only these; the others stay as they were")
    wanted = arguments.parse_args().cases or list(CASES)
    folder = Path(tempfile.mkdtemp(prefix="fault-table-"))
    base = make_encoder(folder / "base")
    served = start_server(folder)
    rows = json.loads(FILE.read_text()) if FILE.is_file() else {}
    try:
        with temporary_settings({PREFECT_API_URL: served.api}):
            served.wait_for(served_.workers_are_ready, "workers that are ready")
            with open(folder / "gpu", "w") as output:
                pool = subprocess.Popen(
                    [sys.executable, "-m", "infra.gpu_workers", "--pool", "gpu"],
                    env={**served.environment, "PREFECT_API_URL": served.api},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            for name in wanted:
                row = try_case(name, CASES[name], folder, served, base)
                print(row, flush=True)
                rows[name] = row._asdict()
                FILE.write_text(json.dumps(rows, indent=1))
    finally:
        pool.terminate()
        served_.stop(served)
    write([Row(**rows[name]) for name in CASES if name in rows])


def write(rows: list[Row]) -> None:
    """Write the table."""
    bad = [row for row in rows if row.problems]
    lines = [
        "# What a run's page says of each fault",
        "",
        f"{len(rows)} faults, each in a run of a deployment. "
        f"In {len(rows) - len(bad)} of them the page alone named cause, visibility and next "
        "step, had the runbook's section, and what it said worked: after it, the run released.",
        "",
        "| state | fault | page: visible to consumers | page: next | then |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (row.ends, row.fault, row.visible or "—", _without_id(row.next) or "—", row.after)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines.append("")
    lines += [f"- {row.ends}: {'; '.join(row.problems)[:500]}" for row in bad]
    tried = {row.ends for row in rows}
    lines += [
        f"- *{case.ends}* has not been tried yet: {case.fault}."
        for case in CASES.values()
        if case.ends not in tried
    ]
    lines += [f"- *{cause}* was not made here: {why}." for cause, why in NOT_MADE.items()]
    lines += ["", "Made by `make fault-table`."]
    FILE.with_suffix(".md").write_text("\n".join(lines) + "\n")


def _without_id(sentence: str) -> str:
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "RUN-ID", sentence)


if __name__ == "__main__":
    main()
