"""A run of a deployment releases what its recipe says, whoever has started it."""

from __future__ import annotations

from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter
from prefect.exceptions import PrefectHTTPStatusError

from flows.deployments import deploy
from tests.flows.running import execute, start, write_recipe
from tests.tasks.contracts.test_credentials import CREDENTIALS


@pytest.fixture
def deployed(place):
    """The name of a deployment of the place's recipe."""
    name = f"locked-{uuid4().hex[:8]}"
    deploy(write_recipe(place.recipe(name=name), place.folder), store=place.store.uri)
    return name


def start_with(name: str, **parameters):
    with get_client(sync_client=True) as client:
        made = client.read_deployment_by_name(f"retrain/{name}")
        both = {**made.parameters, **parameters}
        return client.create_flow_run_from_deployment(made.id, parameters=both)


class TestAForm:
    def test_cannot_change_the_gate(self, deployed):
        state = execute(start(deployed, gate__margin="0.9").id)
        assert state.name == "Bad recipe"
        assert "change of gate.margin" in state.message

    def test_cannot_name_another_recipe(self, deployed, place):
        other = write_recipe(place.recipe(name="another", gate__margin="0.9"), place.folder)
        state = execute(start_with(deployed, recipe=other).id)
        assert state.name == "Bad recipe"
        assert "another recipe than the deployment's" in state.message

    def test_with_a_credential_is_refused_before_it_is_stored(self, deployed):
        for kind, secret in CREDENTIALS.items():
            for changes in ({"data": secret}, {"other": [f"data.uri={secret}"]}):
                with pytest.raises(PrefectHTTPStatusError):
                    start_with(deployed, changes=changes)
                    pytest.fail(f"{kind} was taken")
        with get_client(sync_client=True) as client:
            made = client.read_deployment_by_name(f"retrain/{deployed}")
            mine = DeploymentFilter(id={"any_": [made.id]})
            assert client.read_flow_runs(deployment_filter=mine) == []
