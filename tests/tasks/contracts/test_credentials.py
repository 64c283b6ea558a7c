"""Credentials are found where they must not be, and never shown."""

import pytest

from tasks.contracts.credentials import credentials_in
from tasks.contracts.errors import BadRecipe
from tasks.contracts.recipe import parse_recipe

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
CREDENTIALS = {
    "a password in a URI": "s3://key:s3cr3t@bucket/data.csv",
    "a Hugging Face token": "hf_" + LETTERS,
    "an AWS access key": "AKIA" + "ABCDEFGHIJKLMNOP",
    "an API key": "sk-" + LETTERS,
    "a GitHub token": "ghp_" + LETTERS,
    "a Slack token": "xoxb-" + LETTERS,
    "a webhook's secret": "whsec_" + LETTERS,
    "a signature in a URI": "https://host/data.csv?X-Amz-Signature=" + LETTERS,
    "a private key": "-----BEGIN RSA PRIVATE KEY-----",
}
INNOCENT = (
    "hf://owner/name@main",
    "s3://bucket/prefix:1/data.csv",
    "https://host:8080/path?page=2",
    "hf_model",
    "skip-connections-are-a-good-thing",
    "data@2026-11-27.csv",
)


class TestCredentials:
    @pytest.mark.parametrize("kind", CREDENTIALS)
    def test_of_each_kind_are_found(self, kind):
        values = {"data": {"uri": ["a.csv", f"x {CREDENTIALS[kind]}"]}}
        assert list(credentials_in(values)) == [("data.uri.1", kind)]

    @pytest.mark.parametrize("text", INNOCENT)
    def test_are_not_seen_in_other_texts(self, text):
        assert list(credentials_in({"data": text})) == []

    @pytest.mark.parametrize("kind", CREDENTIALS)
    def test_in_a_recipe_are_refused_and_not_repeated(self, kind):
        values = {"name": "a", "data": {"uri": CREDENTIALS[kind]}, "model": {"uri": "m"}}
        with pytest.raises(BadRecipe, match=f"data.uri: found what looks like {kind}") as caught:
            parse_recipe(values, "a.yaml")
        assert CREDENTIALS[kind] not in str(caught.value)
