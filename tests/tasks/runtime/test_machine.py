"""What this machine says of itself."""

import sys
import sysconfig

import pytest

from tasks.runtime.machine import lacks_to_compile, processor_flags, this_machine


class TestThisMachine:
    def test_has_a_processor_and_memory(self):
        machine = this_machine()
        assert machine.memory > 10**9 and machine.kind and machine.processor
        assert processor_flags()

    def test_names_its_converter_to_gguf(self, gguf_converter_checkout):
        converter = this_machine().converter
        assert converter.complete and converter.architectures == ("LlamaForCausalLM",)
        (gguf_converter_checkout / "conversion" / "__init__.py").write_text("")
        assert this_machine().converter.digest != converter.digest

    def test_says_if_the_converter_lacks_a_module(self, gguf_converter_checkout, monkeypatch):
        (gguf_converter_checkout / "sentencepiece").rmdir()
        monkeypatch.setattr(sys, "path", [])
        assert not this_machine().converter.complete

    def test_may_have_no_converter(self, no_gguf_converter):
        assert this_machine().converter is None


class TestCompiling:
    @pytest.fixture(autouse=True)
    def complete(self, tmp_path, monkeypatch):
        """A machine with a compiler and the headers of Python."""
        (tmp_path / "Python.h").touch()
        monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
        monkeypatch.setenv("CXX", sys.executable)

    def test_lacks_nothing(self):
        assert lacks_to_compile() == ""

    def test_lacks_a_compiler(self, monkeypatch):
        monkeypatch.setenv("CXX", "g++-of-nowhere")
        assert lacks_to_compile() == "the compiler g++-of-nowhere"

    def test_lacks_the_headers_of_python(self, tmp_path):
        (tmp_path / "Python.h").unlink()
        assert "Python.h" in lacks_to_compile()
