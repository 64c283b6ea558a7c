"""A warning if the loss never moved."""

from tasks.training.history import unmoved


class TestUnmoved:
    def test_a_constant_loss_without_gradients_warns(self):
        still = [{"loss": 2.0, "grad_norm": 0.0}] * 6
        assert "never moved" in unmoved(still)
        assert unmoved([*still[:5], {"loss": 1.0, "grad_norm": 0.0}]) is None
        assert unmoved([{"loss": 2.0, "grad_norm": 0.1}] * 6) is None
