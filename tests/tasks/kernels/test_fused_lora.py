"""Fused LoRA layers give the results of peft's own."""

import pytest
import torch

from tasks.contracts.recipe_training import LoraRecipe
from tasks.kernels import fused_lora
from tasks.models import causal

IDS = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def adapted(tiny_lm):
    """Makes a model with an adapter that is not zero; the same for equal arguments."""

    def make(precision=torch.float32, quantization="none", **options):
        model = causal.load_causal(tiny_lm, dtype=precision, quantization=quantization)
        lora = LoraRecipe(**{"r": 4, "alpha": 8, "dropout": 0.0, **options})
        model = causal.attach_lora(model, lora, 0)
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        return model.train()

    return make


def trained(model, precision=torch.float32):
    """Loss and gradients of a step."""
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return loss.item(), {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def difference(found, expected):
    """The largest relative difference of any tensor."""
    assert found.keys() == expected.keys()
    return max(
        ((found[name] - expected[name]).norm() / expected[name].norm()).item() for name in expected
    )


class TestFusedLayer:
    @pytest.mark.parametrize("dropout", [0.0, 0.3])
    @pytest.mark.parametrize("quantization", ["none", "nf4"])
    def test_gives_the_loss_and_gradients_of_peft(self, adapted, quantization, dropout):
        expected = trained(adapted(quantization=quantization, dropout=dropout))
        model = adapted(quantization=quantization, dropout=dropout)
        assert fused_lora.fuse(model) == 14
        found = trained(model)
        assert found[0] == pytest.approx(expected[0], rel=1e-6)
        assert difference(found[1], expected[1]) < 1e-5

    @pytest.mark.parametrize("quantization", ["none", "nf4"])
    def test_differs_in_bf16_by_rounding_only(self, adapted, quantization):
        half = torch.bfloat16
        exact = trained(adapted(quantization=quantization))
        peft = trained(adapted(half, quantization), half)
        model = adapted(half, quantization)
        fused_lora.fuse(model)
        found = trained(model, half)
        assert all(each.dtype == torch.float32 for each in found[1].values())
        assert found[0] == pytest.approx(exact[0], rel=0.01)
        assert difference(found[1], exact[1]) < 1.5 * difference(peft[1], exact[1])

    def test_respects_disabled_adapters(self, adapted):
        model = adapted()
        with torch.no_grad(), model.disable_adapter():
            expected = model(input_ids=IDS).logits
            fused_lora.fuse(model)
            assert torch.equal(model(input_ids=IDS).logits, expected)
        with torch.no_grad():
            assert not torch.equal(model(input_ids=IDS).logits, expected)

    def test_works_with_gradient_checkpointing(self, adapted):
        expected = trained(adapted(dropout=0.3))
        model = adapted(dropout=0.3)
        fused_lora.fuse(model)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        found = trained(model)
        assert found[0] == expected[0]
        assert difference(found[1], expected[1]) < 1e-5

    def test_applies_no_dropout_in_evaluation(self, adapted):
        model = adapted(dropout=0.9).eval()
        with torch.no_grad():
            expected = model(input_ids=IDS).logits
            fused_lora.fuse(model)
            torch.testing.assert_close(model(input_ids=IDS).logits, expected)


class TestUnsupportedLayer:
    def test_with_dora_is_not_fused(self, adapted):
        assert fused_lora.fuse(adapted(dora=True)) == 0

    def test_with_a_trained_base_is_not_fused(self, adapted):
        model = adapted()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        assert fused_lora.fuse(model) == 0
