"""Deployment events: a repeated delivery has the same id, a new deployment another."""

from __future__ import annotations

from tasks.contracts.release import DeploymentEvent

SOURCE = "burnish/news/production"


class TestEventId:
    def test_is_the_same_for_a_repeat(self):
        one, two = (DeploymentEvent.make_id(SOURCE, "deployed", "d" * 64, 3) for _ in range(2))
        assert one == two

    def test_differs_for_another_model_channel_release_kind_or_place_in_the_log(self):
        ids = {
            DeploymentEvent.make_id(SOURCE, "deployed", "d" * 64, 3),
            DeploymentEvent.make_id("burnish/news/staging", "deployed", "d" * 64, 3),
            DeploymentEvent.make_id("burnish/tickets/production", "deployed", "d" * 64, 3),
            DeploymentEvent.make_id(SOURCE, "deployed", "e" * 64, 3),
            DeploymentEvent.make_id(SOURCE, "revealing", "d" * 64, 3),
            DeploymentEvent.make_id(SOURCE, "deployed", "d" * 64, 5),
        }
        assert len(ids) == 6
