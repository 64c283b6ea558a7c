"""Where the GGUF converter is found, and what its digest depends on."""

import shutil
import sys

import pytest

from tasks.contracts.errors import BadRecipe
from tasks.plan import preflight
from tasks.runtime import gguf_converter
from tasks.runtime.gguf_converter import SCRIPT, converter_digest, find_converter, knows
from tests.tasks.plan.conftest import inspected, preflight_inputs
from tests.tasks.samples import run_context


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The files of a converter in a checkout of llama.cpp, named by the environment variable."""
    folder = tmp_path / "llama.cpp"
    (folder / "conversion").mkdir(parents=True)
    (folder / "sentencepiece").mkdir()
    (folder / SCRIPT).write_text("print()")
    (folder / "conversion" / "__init__.py").write_text('MAP = {"LlamaForCausalLM": "llama"}')
    monkeypatch.setenv(gguf_converter.VARIABLE, str(folder))
    return folder


@pytest.fixture
def nothing(tmp_path, monkeypatch):
    """A machine without a converter."""
    monkeypatch.delenv(gguf_converter.VARIABLE, raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def refuse(tmp_path, architecture="LlamaForCausalLM", **changes):
    wanted = {"gguf": "f16", "task": "instruction"} | changes
    inputs = preflight_inputs(inspected=inspected(architecture=architecture), **wanted)
    preflight.refuse_early(inputs, run_context(tmp_path))


class TestFinding:
    def test_the_environment_variable_comes_first(self, checkout, monkeypatch):
        assert find_converter() == checkout / SCRIPT
        monkeypatch.setenv(gguf_converter.VARIABLE, str(checkout / SCRIPT))
        assert find_converter() == checkout / SCRIPT

    def test_a_variable_that_names_nothing_is_not_ignored(self, monkeypatch, tmp_path):
        monkeypatch.setenv(gguf_converter.VARIABLE, str(tmp_path / "gone"))
        assert find_converter() is None

    def test_the_install_folder_comes_second(self, monkeypatch):
        monkeypatch.delenv(gguf_converter.VARIABLE, raising=False)
        assert find_converter() == (gguf_converter.install_folder() / SCRIPT).resolve()

    def test_the_path_comes_last(self, nothing):
        assert find_converter() is None
        (nothing / "bin").mkdir()
        (nothing / "bin" / SCRIPT).write_text("")
        (nothing / "bin" / SCRIPT).chmod(0o755)
        assert find_converter() == nothing / "bin" / SCRIPT


class TestDigest:
    def test_depends_on_the_sources_but_not_on_their_folder(self, checkout, tmp_path, monkeypatch):
        before = converter_digest()
        copy = shutil.copytree(checkout, tmp_path / "copy")
        monkeypatch.setenv(gguf_converter.VARIABLE, str(copy))
        assert converter_digest() == before
        (copy / "conversion" / "llama.py").write_text("")
        assert converter_digest() != before

    def test_is_empty_without_a_converter(self, nothing):
        assert converter_digest() == ""


class TestPreflight:
    def test_what_can_be_made_is_not_refused(self, tmp_path, checkout):
        refuse(tmp_path)

    def test_no_converter_names_the_field_and_the_command(self, nothing):
        with pytest.raises(BadRecipe, match=r"model\.gguf: found f16.*pip install --no-deps"):
            refuse(nothing)

    def test_a_converter_without_what_it_imports(self, tmp_path, checkout, monkeypatch):
        (checkout / "sentencepiece").rmdir()
        monkeypatch.setattr(sys, "path", [])
        with pytest.raises(BadRecipe, match="without the module sentencepiece"):
            refuse(tmp_path)

    def test_an_architecture_that_it_does_not_know(self, tmp_path, checkout):
        with pytest.raises(BadRecipe, match="SomeForCausalLM, which the converter"):
            refuse(tmp_path, "SomeForCausalLM")

    def test_a_classifier(self, tmp_path, checkout):
        with pytest.raises(BadRecipe, match="for a classifier"):
            refuse(tmp_path, task="text-classification")

    def test_nothing_is_looked_for_where_none_is_asked_for(self, nothing):
        refuse(nothing, gguf="none")

    def test_the_installed_one_knows_common_architectures(self):
        script = find_converter()
        known = ("Llama", "Qwen3", "Gemma3", "Mistral", "Phi3", "SmolLM3", "GptOss", "Olmo2")
        assert all(knows(script, f"{name}ForCausalLM") for name in known)
