"""The S3 server, used through boto3."""

from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from tests.doubles.s3 import S3Server


def refused(code: str):
    """Expect boto3 to raise this S3 error."""
    return pytest.raises(ClientError, check=lambda error: error.response["Error"]["Code"] == code)


class TestEnvironment:
    def test_a_default_client_reads_and_writes_the_new_bucket(self, s3_env):
        client = boto3.client("s3")
        assert client.list_objects_v2(Bucket=s3_env)["KeyCount"] == 0
        client.put_object(Bucket=s3_env, Key="a/b", Body=b"1")
        assert client.get_object(Bucket=s3_env, Key="a/b")["Body"].read() == b"1"

    def test_every_bucket_is_new(self, s3, s3_env):
        assert s3.make_bucket() != s3_env


class TestPermissions:
    def test_a_reader_reads_and_lists(self, s3, s3_env):
        s3.client().put_object(Bucket=s3_env, Key="k", Body=b"1")
        reader = s3.client(read_only=True)
        assert reader.get_object(Bucket=s3_env, Key="k")["Body"].read() == b"1"
        assert reader.list_objects_v2(Bucket=s3_env)["KeyCount"] == 1

    def test_a_reader_cannot_write_or_delete(self, s3, s3_env):
        s3.client().put_object(Bucket=s3_env, Key="k", Body=b"1")
        reader = s3.client(read_only=True)
        with refused("AccessDenied"):
            reader.put_object(Bucket=s3_env, Key="k", Body=b"2")
        with refused("AccessDenied"):
            reader.delete_object(Bucket=s3_env, Key="k")

    def test_a_wrong_secret_is_refused(self, s3, s3_env, monkeypatch):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with refused("SignatureDoesNotMatch"):
            boto3.client("s3").list_objects_v2(Bucket=s3_env)


class TestConditionalWrites:
    def test_one_of_several_concurrent_creations_wins(self, s3, s3_env):
        client = s3.client()

        def write(body: bytes) -> bool:
            try:
                client.put_object(Bucket=s3_env, Key="k", Body=body, IfNoneMatch="*")
            except client.exceptions.ClientError as error:
                assert error.response["Error"]["Code"] == "PreconditionFailed"
                return False
            return True

        bodies = [b"%d" % number for number in range(8)]
        with ThreadPoolExecutor(4) as pool:
            won = [body for body, ok in zip(bodies, pool.map(write, bodies), strict=True) if ok]
        assert [client.get_object(Bucket=s3_env, Key="k")["Body"].read()] == won

    def test_replacing_needs_the_current_tag(self, s3, s3_env):
        client = s3.client()
        seen = client.put_object(Bucket=s3_env, Key="k", Body=b"1")["ETag"]
        client.put_object(Bucket=s3_env, Key="k", Body=b"2", IfMatch=seen)
        with refused("PreconditionFailed"):
            client.put_object(Bucket=s3_env, Key="k", Body=b"3", IfMatch=seen)


class TestKill:
    def test_written_data_survive_a_kill(self, s3, s3_env):
        client = s3.client(retries={"total_max_attempts": 1}, connect_timeout=1)
        client.put_object(Bucket=s3_env, Key="k", Body=b"1" * 100_000)
        s3.kill()
        with pytest.raises(EndpointConnectionError):
            client.head_object(Bucket=s3_env, Key="k")
        s3.start()
        assert client.get_object(Bucket=s3_env, Key="k")["Body"].read() == b"1" * 100_000

    def test_stop_removes_the_data(self):
        server = S3Server()
        server.stop()
        assert not server.folder.exists()
