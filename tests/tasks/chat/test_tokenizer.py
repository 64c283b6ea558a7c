"""Reading a model's tokenizer: a missing, damaged or slow one is refused."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoTokenizer

from tasks.chat.tokenizer import read_tokenizer
from tasks.contracts.errors import BadModel


@pytest.fixture
def folder(tiny_lm, tmp_path):
    """A model's folder without its weights."""
    ignored = shutil.ignore_patterns("*.safetensors")
    return shutil.copytree(tiny_lm, tmp_path / "model", ignore=ignored)


class TestReadTokenizer:
    def test_gives_the_ids_that_transformers_gives(self, folder):
        text = "To be, or not to be?"
        own = AutoTokenizer.from_pretrained(folder)
        assert read_tokenizer(folder)(text)["input_ids"] == own(text)["input_ids"]

    def test_without_a_tokenizer_is_refused(self, folder):
        (folder / "tokenizer.json").unlink()
        with pytest.raises(BadModel, match="a model without a tokenizer") as error:
            read_tokenizer(folder)
        assert error.value.where == "model.uri"

    @pytest.mark.parametrize("content", ["", "{}", '{"model": {"type": "BPE"}}'])
    def test_a_damaged_one_is_refused(self, folder, content):
        (folder / "tokenizer.json").write_text(content)
        with pytest.raises(BadModel, match="a tokenizer that cannot be read"):
            read_tokenizer(folder)

    def test_code_of_its_own_is_not_run(self, folder):
        (folder / "own.py").write_text("raise SystemExit('run')")
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["auto_map"] = {"AutoTokenizer": ["own.Own", "own.Own"]}
        config["tokenizer_class"] = "Own"
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        try:
            assert read_tokenizer(folder).is_fast
        except BadModel as error:
            assert "cannot be read" in error.found
