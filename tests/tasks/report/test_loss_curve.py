"""The loss curve."""

from tasks.report.loss_curve import loss_curve


class TestLossCurve:
    def test_needs_no_network(self):
        history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 1}]
        assert loss_curve(history).startswith("![loss](data:image/svg+xml;base64,")

    def test_of_one_point_is_empty(self):
        assert loss_curve([{"step": 1, "loss": 2.0}]) == ""
