"""Losses equal those of torch; the DPO loss equals one computed by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from tasks.training import losses


@pytest.fixture
def head():
    """Inputs of a head, its weights and bias, and targets, of more tokens than a chunk holds."""
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(150, 16, generator=draw, requires_grad=True)
    weight, bias = torch.randn(301, 16, generator=draw), torch.randn(301, generator=draw)
    return hidden, weight, bias, torch.randint(301, (150,), generator=draw)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(losses, "MAX_ROWS", 32)


class TestHeadLosses:
    @pytest.mark.parametrize("with_bias", [True, False])
    def test_losses_and_gradients_equal_those_of_torch(self, head, with_bias):
        hidden, weight, bias, targets = head
        bias = bias if with_bias else None
        upstream = torch.randn(150, generator=torch.Generator().manual_seed(2))
        found = losses.head_losses(hidden, targets, weight, bias, predict=True)
        (gradient,) = torch.autograd.grad((found.nats * upstream).sum(), hidden)
        logits = F.linear(hidden, weight, bias)
        expected = F.cross_entropy(logits, targets, reduction="none")
        (wanted,) = torch.autograd.grad((expected * upstream).sum(), hidden)
        assert torch.allclose(found.nats, expected, atol=1e-5)
        assert torch.allclose(gradient, wanted, atol=1e-5)
        assert torch.equal(found.right, logits.argmax(-1) == targets)

    def test_in_bf16_losses_are_close(self, head):
        hidden, weight, _, targets = head
        found = losses.head_losses(hidden, targets, weight.bfloat16())
        expected = F.cross_entropy(F.linear(hidden, weight), targets, reduction="none")
        assert found.nats.dtype == torch.float32
        assert found.nats.mean().item() == pytest.approx(expected.mean().item(), rel=0.01)
        found.nats.sum().backward()
        assert hidden.grad.dtype == torch.float32

    def test_evaluation_computes_no_gradient(self, head):
        hidden, weight, bias, targets = head
        with torch.no_grad():
            found = losses.head_losses(hidden, targets, weight, bias)
        assert not found.nats.requires_grad
        assert found.right is None

    def test_no_tokens_give_no_losses(self, head):
        hidden, weight, bias, targets = head
        found = losses.head_losses(hidden[:0], targets[:0], weight, bias)
        found.nats.sum().backward()
        assert found.nats.shape == (0,)


class TestLogitLosses:
    def test_equal_those_of_torch(self, head):
        hidden, weight, bias, targets = head
        logits = F.linear(hidden, weight, bias)
        found = losses.logit_losses(logits, targets, predict=True)
        assert torch.allclose(found.nats, F.cross_entropy(logits, targets, reduction="none"))
        assert torch.equal(found.right, logits.argmax(-1) == targets)


class TestPreferenceLoss:
    def test_equals_the_formula_of_the_paper(self):
        given = [torch.tensor([value]) for value in (-3.0, -5.0, -4.0, -4.5)]
        loss, margin = losses.preference_loss(*given, beta=0.5)
        # 0.5 * ((-3 + 4) - (-5 + 4.5)) = 0.75
        assert margin.item() == pytest.approx(0.75)
        assert loss.item() == pytest.approx(-math.log(1 / (1 + math.exp(-0.75))))

    def test_of_the_reference_model_is_ln_2(self):
        own = torch.tensor([-3.0, -900.0])
        loss, margin = losses.preference_loss(own, own - 7, own, own - 7, beta=0.1)
        assert loss.tolist() == pytest.approx([math.log(2)] * 2)
        assert margin.tolist() == [0.0, 0.0]
