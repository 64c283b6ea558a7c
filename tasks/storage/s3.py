"""S3: one client, and its errors said in our own terms."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator

from tasks.contracts.errors import BurnishError, NoAccess, NotFound, StorageFailed


def s3_client():
    """A boto3 client for the credentials and endpoint of the environment as it is now."""
    return _client_for(tuple(sorted(item for item in os.environ.items() if "AWS_" in item[0])))


@functools.lru_cache(4)
def _client_for(settings: tuple[tuple[str, str], ...]):
    # Importing boto3 takes a quarter of a second, which a local run need not spend.
    import boto3
    from botocore.config import Config

    # Not the default session, which keeps the credentials that it found first.
    session = boto3.session.Session()
    return session.client("s3", config=Config(retries={"mode": "standard", "max_attempts": 5}))


@contextlib.contextmanager
def s3_errors(where: str) -> Iterator[None]:
    """Say boto3's errors as ours.

    Args:
        where: The URI concerned, with the recipe field where it is known.

    Raises:
        NotFound: No such bucket or object.
        NoAccess: Credentials are missing or wrong, or lack the right.
        StorageFailed: Anything else.
    """
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except NoCredentialsError:
        raise NoAccess(
            where,
            "no credentials",
            "credentials that boto3 finds",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile",
        ) from None
    except S3UploadFailedError as error:
        cause = error.__context__
        raise (_problem(where, cause) if isinstance(cause, ClientError) else error) from error
    except ClientError as error:
        raise _problem(where, error) from error
    except BotoCoreError as error:
        raise StorageFailed(
            where, str(error), "an S3 server that answers", "check AWS_ENDPOINT_URL and network"
        ) from error


def _problem(where: str, error) -> BurnishError:
    code = error.response["Error"]["Code"]
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    if code == "NoSuchBucket":
        return NotFound(where, "no such bucket", "a bucket that exists", "create or correct it")
    if status == 404:
        return NotFound(where, "no such object", "an object that exists", "correct the name")
    if status in (401, 403):
        return NoAccess(
            where,
            f"access denied ({code})",
            "credentials with the right to do this",
            "check the AWS credentials and the bucket's policy",
        )
    return StorageFailed(where, f"{code} ({status})", "an S3 server that answers", "try again")
