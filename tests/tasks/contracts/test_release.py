"""Deployment events: a repeated delivery has the same id, a new deployment another."""

from __future__ import annotations

from tasks.contracts.release import DeploymentEvent


class TestEventId:
    def test_is_the_same_for_a_repeat(self):
        one, two = (DeploymentEvent.make_id("deployed", "d" * 64, 3) for _ in range(2))
        assert one == two

    def test_differs_for_another_release_kind_or_return_to_an_older_release(self):
        ids = {
            DeploymentEvent.make_id("deployed", "d" * 64, 3),
            DeploymentEvent.make_id("deployed", "e" * 64, 3),
            DeploymentEvent.make_id("revealing", "d" * 64, 3),
            DeploymentEvent.make_id("deployed", "d" * 64, 5),
        }
        assert len(ids) == 4
