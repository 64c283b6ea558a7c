"""Where the GGUF converter is found, and what its digest depends on."""

import shutil

from tasks.runtime import gguf_converter
from tasks.runtime.gguf_converter import SCRIPT, architectures, converter_digest, find_converter


class TestFinding:
    def test_the_environment_variable_comes_first(self, gguf_converter_checkout, monkeypatch):
        assert find_converter() == gguf_converter_checkout / SCRIPT
        monkeypatch.setenv(gguf_converter.VARIABLE, str(gguf_converter_checkout / SCRIPT))
        assert find_converter() == gguf_converter_checkout / SCRIPT

    def test_a_variable_that_names_nothing_is_not_ignored(self, monkeypatch, tmp_path):
        monkeypatch.setenv(gguf_converter.VARIABLE, str(tmp_path / "gone"))
        assert find_converter() is None

    def test_the_install_folder_comes_second(self, monkeypatch):
        monkeypatch.delenv(gguf_converter.VARIABLE, raising=False)
        assert find_converter() == (gguf_converter.install_folder() / SCRIPT).resolve()

    def test_the_path_comes_last(self, no_gguf_converter):
        assert find_converter() is None
        (no_gguf_converter / "bin").mkdir()
        (no_gguf_converter / "bin" / SCRIPT).write_text("")
        (no_gguf_converter / "bin" / SCRIPT).chmod(0o755)
        assert find_converter() == no_gguf_converter / "bin" / SCRIPT


class TestDigest:
    def test_depends_on_the_sources_but_not_on_their_folder(
        self, gguf_converter_checkout, tmp_path, monkeypatch
    ):
        before = converter_digest()
        copy = shutil.copytree(gguf_converter_checkout, tmp_path / "copy")
        monkeypatch.setenv(gguf_converter.VARIABLE, str(copy))
        assert converter_digest() == before
        (copy / "conversion" / "llama.py").write_text("")
        assert converter_digest() != before

    def test_is_empty_without_a_converter(self, no_gguf_converter):
        assert converter_digest() == ""


class TestArchitectures:
    def test_the_installed_converter_knows_common_ones(self):
        known = ("Llama", "Qwen3", "Gemma3", "Mistral", "Phi3", "SmolLM3", "GptOss", "Olmo2")
        assert {f"{name}ForCausalLM" for name in known} <= set(architectures(find_converter()))
