"""The rules of the code's layout that import-linter's contracts in pyproject.toml cannot state:
which modules may reach which libraries, and what a file may hold."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import grimp
import pytest

from flows.producers import PRODUCERS
from flows.retrain import STEPS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("flows", "infra", "tasks")

PROGRAM_FOLDERS = ("tasks.chat", "tasks.kernels", "tasks.models", "tasks.training")
PROGRAM_MODULES = (
    "tasks.evaluate.generation",
    "tasks.evaluate.release_check",
    "tasks.evaluate.released_model",
    "tasks.plan.cuda_memory",
    "tasks.plan.fake_model",
    "tasks.plan.memory_trace",
    "tasks.plan.memory_tracker",
)
"""What programs are built from: with the programs, all that may reach torch or transformers."""

# Prefect loads a flow by its file, and reads these variables when it is first imported.
INIT_WITH_CODE = ["flows/__init__.py"]


MAX_LINES = 400
MAX_LINES_OF_TESTS = 700
"""The limit for test files that give a reason; without one it is `MAX_LINES`."""
LONG_FILE_REASON = "Over 400 lines because"


@pytest.fixture(scope="module")
def graph():
    """All imports, in functions too; those of steps that start a program by name are none."""
    return grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)


def is_program(module: str) -> bool:
    # `run_program` is the flow's side: it starts programs.
    return (
        module.startswith("tasks.")
        and module.endswith("program")
        and module != "tasks.runtime.run_program"
    )


def is_part_of_a_program(module: str) -> bool:
    folder = ".".join(module.split(".")[:2])
    return is_program(module) or folder in PROGRAM_FOLDERS or module in PROGRAM_MODULES


def chains(graph, importers, library: str) -> list[tuple[str, ...]]:
    """The shortest chain of imports from each module to a library that it reaches."""
    assert graph.find_modules_that_directly_import(library), f"nothing imports {library}"
    reaching = graph.find_downstream_modules(library) & set(importers)
    return [graph.find_shortest_chain(module, library) for module in sorted(reaching)]


def own_modules(graph) -> list[str]:
    return [module for module in graph.modules if module.split(".")[0] in PACKAGES]


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


class TestImports:
    def test_no_program_reaches_prefect(self, graph):
        programs = list(filter(is_program, own_modules(graph)))
        assert len(programs) > 10
        assert chains(graph, programs, "prefect") == []

    @pytest.mark.parametrize("library", ["torch", "transformers"])
    def test_only_programs_and_their_parts_reach_model_libraries(self, graph, library):
        others = [module for module in own_modules(graph) if not is_part_of_a_program(module)]
        assert chains(graph, others, library) == []

    def test_only_programs_and_their_parts_import_the_package_evaluate(self, graph):
        others = [module for module in own_modules(graph) if not is_part_of_a_program(module)]
        assert chains(graph, others, "evaluate") == []


class TestFiles:
    def test_an_init_file_holds_a_docstring_only(self):
        with_code = []
        for path in files(*PACKAGES, "tests"):
            body = ast.parse(path.read_text()).body if path.name == "__init__.py" else []
            if len(body) > 1 or (body and not ast.get_docstring(ast.Module(body, []))):
                with_code.append(relative(path))
        assert with_code == INIT_WITH_CODE

    def test_a_long_file_gives_a_reason_in_its_docstring(self):
        too_long = []
        for path in files(*PACKAGES, "tests"):
            text = path.read_text()
            lines = text.count("\n")
            reason = LONG_FILE_REASON in (ast.get_docstring(ast.parse(text)) or "")
            limit = MAX_LINES
            if reason:
                limit = MAX_LINES_OF_TESTS if path.is_relative_to(ROOT / "tests") else math.inf
            if lines > limit:
                too_long.append(f"{relative(path)}: {lines} lines")
        assert too_long == []


class TestPrivateNames:
    def test_no_file_uses_a_private_name_of_another(self):
        private = {name for path in files(*PACKAGES) for name in defined_names(path)}
        found = [
            f"{relative(path)}:{line}: {name}"
            for path in files(*PACKAGES, "tests")
            for name, line in used_names(path)
            if name in private - defined_names(path)
        ]
        assert found == []

    def test_no_test_changes_the_defaults_of_a_function(self):
        found = [
            f"{relative(path)}:{node.lineno}"
            for path in files("tests")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and node.attr in ("__defaults__", "__kwdefaults__")
        ]
        assert found == []


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def is_own_attribute(node: ast.AST) -> bool:
    """Whether this is an attribute of `self`: a subclass may use those of its base class."""
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("self", "cls")
    )


def defined_names(path: Path) -> set[str]:
    """The private functions, classes, variables and attributes that a file defines."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif is_own_attribute(node) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return set(filter(is_private, found))


def used_names(path: Path) -> list[tuple[str, int]]:
    """The private names that a file imports, takes from an object, or replaces by
    `setattr(object, "_name", …)`, each with its line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and not is_own_attribute(node):
            names = [node.attr]
        elif isinstance(node, ast.Call):
            function = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if function in ("setattr", "getattr", "delattr"):
                texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
                names = [text.split(".")[-1] for text in texts if isinstance(text, str)]
        found += [(name, node.lineno) for name in names if is_private(name)]
    return found


class TestArtifacts:
    def test_every_kind_that_a_step_stores_has_a_producer_to_repeat(self):
        stored = set()
        for path in files("tasks"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "put":
                    stored |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
        # A release's provenance is stored when it is published, which is no step.
        assert stored - {"provenance"} == PRODUCERS.keys()
        assert set(PRODUCERS.values()) == set(STEPS)
