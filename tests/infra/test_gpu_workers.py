"""One worker for each group of GPUs; the pool and its deployment are there before."""

import uuid

import pytest
from prefect.client.orchestration import get_client

from infra.gpu_workers import gpu_groups, register


class TestGroups:
    def test_have_one_gpu_each(self):
        assert gpu_groups(["GPU-a", "GPU-b"], 1) == ["GPU-a", "GPU-b"]

    def test_have_as_many_as_asked_for(self):
        gpus = ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]
        assert gpu_groups(gpus, 2) == ["GPU-a,GPU-b", "GPU-c,GPU-d"]

    @pytest.mark.parametrize("size", [2, 4, 0, -1])
    def test_are_all_alike(self, size):
        with pytest.raises(SystemExit, match="found 3 GPUs; expected a number that divides them"):
            gpu_groups(["GPU-a", "GPU-b", "GPU-c"], size)

    def test_are_one_without_a_gpu(self):
        assert gpu_groups([], 2) == [""]


class TestRegister:
    def test_may_be_repeated_and_changes_nothing_then(self, prefect_env):
        pool = f"pool-{uuid.uuid4().hex[:8]}"
        found = []
        for _ in range(2):
            register(pool)
            with get_client(sync_client=True) as client:
                found.append(client.read_deployment_by_name(f"steps/{pool}"))
        assert found[0].id == found[1].id
        assert found[0].work_pool_name == pool and found[0].entrypoint == "flows.steps.steps"
