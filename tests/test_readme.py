"""The README, CONTRIBUTING and the Makefile promise nothing that is not there."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from flows.cli import app
from tasks.contracts.recipe import parse_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "tests/benchmarks/results/README.md")
MAKEFILE = (ROOT / "Makefile").read_text()


def page(name):
    return (ROOT / name).read_text()


def blocks(name, language):
    """The fenced blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", page(name), re.DOTALL)


def commands(name):
    """The commands of a page's shell blocks, as words, comments left out."""
    lines = [line for block in blocks(name, "sh") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_the_readme_takes_two_minutes():
    assert len(page("README.md").splitlines()) <= 150


@pytest.mark.parametrize("name", PAGES)
def test_relative_links_lead_somewhere(name):
    folder = (ROOT / name).parent
    links = re.findall(r"\]\(([^)#]+)\)", page(name))
    missing = [
        link for link in links if not link.startswith("http") and not (folder / link).exists()
    ]
    assert not missing


@pytest.mark.parametrize("name", PAGES)
def test_files_that_are_named_exist(name):
    named = re.findall(r"`((?:flows|tasks|infra|tests)/[\w/.*]*)`", page(name))
    assert not [path for path in named if not list(ROOT.glob(path.rstrip("/")))]


@pytest.mark.parametrize("name", PAGES)
def test_make_targets_exist(name):
    found = [words for words in commands(name) if words[0] == "make"]
    inline = [text.split() for text in re.findall(r"`(make [^`]+)`", page(name))]
    for words in [*found, *inline]:
        assert re.search(rf"^{words[1]}:", MAKEFILE, re.MULTILINE), words
        recipes = [word.removeprefix("RECIPE=") for word in words if word.startswith("RECIPE=")]
        for recipe in recipes:
            assert (ROOT / "flows" / "recipes" / f"{recipe}.yaml").is_file()


@pytest.mark.parametrize("name", PAGES)
def test_burnish_commands_parse(name):
    group = typer.main.get_command(app)
    for words in commands(name):
        if words[0].endswith("burnish"):
            command = group.commands[words[1]]
            # Raises where an option or argument is unknown; nothing is run.
            command.make_context(words[1], words[2:])


def test_the_recipe_in_the_readme_is_valid():
    [text] = blocks("README.md", "yaml")
    assert parse_recipe(yaml.safe_load(text), "README.md").name == "support-tickets"


def test_every_committed_figure_has_a_line():
    results = ROOT / "tests" / "benchmarks" / "results"
    for report in results.glob("*.json"):
        assert f"[{report.stem}]" in page("tests/benchmarks/results/README.md"), report.stem


@pytest.mark.parametrize("name", ["README.md", "tests/benchmarks/results/README.md"])
def test_the_figures_are_the_committed_ones(name):
    flow, rerun = (
        json.loads((ROOT / "tests/benchmarks/results" / f"{report}.json").read_text())
        for report in ("whole_flow", "cached_rerun")
    )
    served = rerun["with_server"]
    for words in (
        f"{flow['flow_seconds']:.1f} s; the script takes {flow['plain_seconds']:.1f} s",
        f"{served['rerun seconds']:.1f} s against a running server",
        f"{served['ours seconds']:.1f} s",
    ):
        assert words in page(name)
