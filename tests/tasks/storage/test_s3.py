"""Errors of S3 as Burnish errors."""

from __future__ import annotations

import boto3
import pytest

from tasks.contracts.errors import NoAccess, NotFound
from tasks.storage.objects import S3Objects
from tasks.storage.sources import resolve


class TestS3Errors:
    def test_wrong_credentials_in_a_session(self, s3_env, monkeypatch):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        with pytest.raises(NoAccess, match="access denied"):
            resolve(f"s3://{s3_env}/d", "data")

    def test_no_credentials(self, s3_env, monkeypatch):
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        with pytest.raises(NoAccess, match="no credentials"):
            resolve(f"s3://{s3_env}/d", "data")

    def test_wrong_credentials(self, s3_env, monkeypatch):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(NoAccess, match="access denied"):
            S3Objects(f"s3://{s3_env}/p").write("a", b"")

    def test_a_bucket_that_does_not_exist(self, s3_env):
        with pytest.raises(NotFound, match="no such bucket"):
            S3Objects("s3://there-is-no-such-bucket/p").read("a")

    def test_a_read_only_identity_cannot_write(self, s3, s3_env, monkeypatch):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.reader_access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.reader_secret_key)
        with pytest.raises(NoAccess):
            S3Objects(f"s3://{s3_env}/p").write("a", b"")
