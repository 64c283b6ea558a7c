"""S3: its client, and its errors as Burnish errors."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator

from tasks.contracts.errors import BurnishError, NoAccess, NotFound, StorageFailed


def s3_client():
    """Return a boto3 client for the current credentials and endpoint."""
    return _client_for(tuple(sorted(item for item in os.environ.items() if "AWS_" in item[0])))


@functools.lru_cache(4)
def _client_for(settings: tuple[tuple[str, str], ...]):
    # Imported late: boto3 takes a quarter of a second, which local runs save.
    import boto3
    from botocore.config import Config

    # Not the default session: it keeps the first credentials it finds.
    session = boto3.session.Session()
    return session.client("s3", config=Config(retries={"mode": "standard", "max_attempts": 5}))


@contextlib.contextmanager
def s3_errors(where: str) -> Iterator[None]:
    """Convert errors of boto3 to Burnish errors.

    Args:
        where: The URI, with the recipe field if it is known, for messages.

    Raises:
        NotFound: The bucket or object does not exist.
        NoAccess: Credentials are missing, wrong, or lack the permission.
        StorageFailed: Any other error.
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
        raise (_client_error(where, cause) if isinstance(cause, ClientError) else error) from error
    except ClientError as error:
        raise _client_error(where, error) from error
    except BotoCoreError as error:
        raise StorageFailed(
            where, str(error), "a reachable S3 server", "check AWS_ENDPOINT_URL and the network"
        ) from error


def _client_error(where: str, error) -> BurnishError:
    code = error.response["Error"]["Code"]
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    if code == "NoSuchBucket":
        return NotFound(
            where, "no such bucket", "an existing bucket", "create it or correct the name"
        )
    if status == 404:
        return NotFound(where, "no such object", "an existing object", "correct the name")
    if status in (401, 403):
        return NoAccess(
            where,
            f"access denied ({code})",
            "credentials with this permission",
            "check the AWS credentials and the bucket's policy",
        )
    return StorageFailed(where, f"{code} ({status})", "a working S3 server", "try again")
