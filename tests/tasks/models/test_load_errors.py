"""Broken model files are the model's fault; a machine without memory or disk is not."""

from __future__ import annotations

import errno

import pytest
import torch
from safetensors import SafetensorError

from tasks.contracts.errors import BadModel, BadRecipe
from tasks.models.load_errors import base_load_errors, one_line, release_load_errors

BROKEN = [
    OSError("Error no file named model.safetensors"),
    ValueError("mismatched sizes\nand more lines"),
    KeyError("head.weight"),
    SafetensorError("header too large"),
]
MACHINE = [
    OSError(errno.ENOSPC, "No space left on device"),
    torch.OutOfMemoryError("CUDA out of memory"),
    BadRecipe("plan.device", "cuda", "cpu", "set it to cpu"),
]


class TestLoadErrors:
    @pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
    def test_of_broken_files_blame_the_model(self, error):
        refused = pytest.raises(BadModel, match="weights that cannot be loaded")
        with refused as caught, base_load_errors("AutoModel"):
            raise error
        assert caught.value.where == "model.uri"
        assert caught.value.expected == "a model that AutoModel can load"
        assert caught.value.__cause__ is error

    @pytest.mark.parametrize("error", MACHINE, ids=lambda error: type(error).__name__)
    def test_of_the_machine_pass_through(self, error):
        with pytest.raises(type(error)) as caught, base_load_errors("AutoModel"):
            raise error
        assert caught.value is error

    def test_of_a_release_say_that_a_new_run_rebuilds_it(self):
        with pytest.raises(BadModel) as caught, release_load_errors("PeftModel"):
            raise ValueError("no adapter_config.json")
        assert (caught.value.where, "damaged files are rebuilt" in caught.value.fix) == (
            "the model",
            True,
        )


class TestOneLine:
    def test_has_the_type_and_the_first_line(self):
        assert one_line(ValueError("first\nsecond")) == "ValueError: first"
        assert one_line(KeyError()) == "KeyError"
