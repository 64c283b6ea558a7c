"""Errors of the Hub as Burnish errors."""

from __future__ import annotations

import pytest

from tasks.contracts.errors import HubFailed, NoAccess
from tasks.storage.sources import resolve
from tests.tasks.samples import DATA_FILES


class TestHubErrors:
    def test_a_token_without_permission(self, hub_env):
        hub_env.add_repo("ci/news", DATA_FILES, kind="dataset")
        hub_env.fail_next("GET", "/api/datasets/ci/news", status=403)
        with pytest.raises(NoAccess, match="access denied"):
            resolve("hf://ci/news", "data")

    def test_a_failing_hub(self, hub_env):
        hub_env.add_repo("ci/news", DATA_FILES, kind="dataset")
        hub_env.fail_next("GET", "/api/datasets/ci/news", status=500, times=20)
        with pytest.raises(HubFailed):
            resolve("hf://ci/news", "data")


class TestHubApi:
    def test_the_endpoint_is_read_for_each_client(self, hub_env, monkeypatch):
        hub_env.add_repo("ci/news", DATA_FILES, kind="dataset")
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(HubFailed):
            resolve("hf://ci/news", "data")
