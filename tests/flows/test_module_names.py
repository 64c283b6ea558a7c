"""Names of modules in `flows/`: Prefect loads a flow by its file and puts the file's folder first
on the path, so a module there would hide any other of its name."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import flows

FLOWS = Path(flows.__file__).parent
LOAD = """
import importlib, json
from prefect.flows import load_flow_from_entrypoint
load_flow_from_entrypoint("flows/retrain.py:retrain")
names = ("evaluate", "datasets", "tokenize")
print(json.dumps([importlib.import_module(name).__file__ for name in names]))
"""


class TestModulesOfFlows:
    def test_have_names_that_nothing_else_has(self):
        names = {path.stem for path in FLOWS.iterdir()} - {"__init__", "__pycache__"}
        assert {"retrain", "cli", "stage_inputs"} <= names
        assert not names & {*sys.stdlib_module_names, *packages_distributions()}

    def test_hide_no_package_once_the_flow_is_loaded_by_its_file(self):
        shown = subprocess.run(
            [sys.executable, "-c", LOAD], cwd=FLOWS.parent, capture_output=True, text=True
        )
        assert shown.returncode == 0, shown.stderr
        files = [Path(file) for file in json.loads(shown.stdout.splitlines()[-1])]
        assert [file.parent.name for file in files[:2]] == ["evaluate", "datasets"]
        assert files[2].name == "tokenize.py"
        assert not [file for file in files if file.is_relative_to(FLOWS.parent / "flows")]
        assert not [file for file in files if file.is_relative_to(FLOWS.parent / "tasks")]
