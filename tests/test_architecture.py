"""The rules of the code's layout that import-linter's contracts in pyproject.toml cannot state:
which modules may reach which libraries, and what a file may hold."""

from __future__ import annotations

import ast
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("flows", "infra", "tasks")

PROGRAM_FOLDERS = ("tasks.chat", "tasks.kernels", "tasks.models", "tasks.training")
PROGRAM_MODULES = (
    "tasks.evaluate.generation",
    "tasks.evaluate.released_model",
    "tasks.plan.cuda_memory",
    "tasks.plan.fake_model",
    "tasks.plan.memory_trace",
    "tasks.plan.memory_tracker",
)
"""What programs are built from: with the programs, all that may reach torch or transformers."""

# Prefect loads a flow by its file, and reads these variables when it is first imported.
INIT_WITH_CODE = ["flows/__init__.py"]


@pytest.fixture(scope="module")
def graph():
    """All imports, in functions too; those of steps that start a program by name are none."""
    return grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)


def is_program(module: str) -> bool:
    return module.startswith("tasks.") and module.endswith("program")


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

    def test_no_module_of_flows_has_the_name_of_an_installed_package(self, graph):
        # Prefect puts the folder of a flow first on the path of modules.
        names = {module.split(".")[1] for module in graph.modules if module.startswith("flows.")}
        assert not names & {module for module in graph.modules if "." not in module}


class TestFiles:
    def test_an_init_file_holds_a_docstring_only(self):
        with_code = []
        for path in files(*PACKAGES, "tests"):
            body = ast.parse(path.read_text()).body if path.name == "__init__.py" else []
            if len(body) > 1 or (body and not ast.get_docstring(ast.Module(body, []))):
                with_code.append(relative(path))
        assert with_code == INIT_WITH_CODE
