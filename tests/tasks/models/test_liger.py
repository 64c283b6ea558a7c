"""Liger's kernels: which are applied, and models that they change are refused.

Liger itself needs a GPU; a stand-in takes its place here.
"""

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
def stand_in(monkeypatch):
    """Replaces Liger by the given function."""

    def play(apply):
        monkeypatch.setattr(kernels, "is_liger_kernel_available", lambda: True)
        monkeypatch.setattr(liger, "apply_liger_kernel", apply)

    return play


class TestApplyLiger:
    def test_the_loss_is_not_replaced(self, base, stand_in):
        asked = {}
        stand_in(lambda model, config: asked.update(config, model=model))
        kernels.apply_liger(base, "cpu")
        assert asked.pop("model") is base
        losses = {"cross_entropy", "fused_linear_cross_entropy"}
        assert {name for name, wanted in asked.items() if wanted} >= {"rope", "rms_norm", "swiglu"}
        assert not any(asked[name] for name in losses)

    def test_a_model_whose_hidden_states_change_is_refused(self, base, stand_in):
        def other_activation(model, config):
            for layer in model.model.layers:
                layer.mlp.act_fn = torch.nn.ReLU()

        stand_in(other_activation)
        with pytest.raises(BadModel, match="hidden states change with Liger's kernels"):
            kernels.apply_liger(base, "cpu")

    def test_is_refused_if_liger_is_not_installed(self, base, monkeypatch):
        monkeypatch.setattr(kernels, "is_liger_kernel_available", lambda: False)
        with pytest.raises(BadRecipe, match=r"plan\.kernels"):
            kernels.apply_liger(base, "cpu")
