"""Fused kernels: what is asked of Liger, and what becomes of a model that they do not suit. Liger
itself needs a GPU, and is played here."""

from pathlib import Path

import pytest
import torch
from transformers.integrations import liger

from tasks.contracts.errors import BadModel, BadRecipe
from tasks.models import causal
from tasks.models import liger as kernels


@pytest.fixture
def base(tiny_lm):
    return causal.load_causal(Path(tiny_lm))


@pytest.fixture
def played(monkeypatch):
    """Has Liger's place taken by something else."""

    def play(apply):
        monkeypatch.setattr(kernels, "is_liger_kernel_available", lambda: True)
        monkeypatch.setattr(liger, "apply_liger_kernel", apply)

    return play


class TestFusing:
    def test_leaves_the_loss_to_us(self, base, played):
        asked = {}
        played(lambda model, config: asked.update(config, model=model))
        kernels.fuse(base, "cpu")
        assert asked.pop("model") is base
        losses = {"cross_entropy", "fused_linear_cross_entropy"}
        assert {name for name, wanted in asked.items() if wanted} >= {"rope", "rms_norm", "swiglu"}
        assert not any(asked[name] for name in losses)

    def test_that_changes_what_the_model_says_is_refused(self, base, played):
        def other_activation(model, config):
            for layer in model.model.layers:
                layer.mlp.act_fn = torch.nn.ReLU()

        played(other_activation)
        with pytest.raises(BadModel, match="something else with Liger's kernels"):
            kernels.fuse(base, "cpu")

    def test_is_refused_where_the_kernels_are_not(self, base, monkeypatch):
        monkeypatch.setattr(kernels, "is_liger_kernel_available", lambda: False)
        with pytest.raises(BadRecipe, match=r"plan\.kernels"):
            kernels.fuse(base, "cpu")
