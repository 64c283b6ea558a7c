"""Webhooks that are told of each deployment, signed as Standard Webhooks says.

A receiver checks the signature over id, time and body, refuses old times, and ignores an id that
it has had already (https://www.standardwebhooks.com, version 1). The secret is in the environment
of those who send, and nowhere else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import time

from tasks.contracts.errors import NoAccess

SECRET_VARIABLE = "BURNISH_WEBHOOK_SECRET"
_PREFIX = "whsec_"
_SECONDS = 10
_LEAST_BYTES, _MOST_BYTES = 24, 64


def webhook_secret() -> bytes:
    """The secret that webhooks are signed with.

    Raises:
        NoAccess: There is none, or it is no secret.
    """
    given = os.environ.get(SECRET_VARIABLE, "").strip()
    try:
        secret = base64.b64decode(given.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        secret = b""
    if not _LEAST_BYTES <= len(secret) <= _MOST_BYTES:
        raise NoAccess(
            "announce.webhooks",
            f"{'no secret' if not given else 'what is no secret'} in the environment variable "
            f"{SECRET_VARIABLE}",
            f"{_PREFIX} and {_LEAST_BYTES} to {_MOST_BYTES} bytes in base64, which the receivers "
            "know too",
            f"set {SECRET_VARIABLE} where runs start: "
            f"echo {_PREFIX}$(head -c 32 /dev/urandom | base64)",
        )
    return secret


def post_webhook(url: str, identity: str, body: bytes) -> None:
    """Send a body, and wait until the receiver has taken it.

    Args:
        url: Of the receiver.
        identity: The same for each repetition.
        body: JSON.

    Raises:
        NoAccess: There is no secret to sign it with.
        Exception: The receiver cannot be reached, or does not answer with 2xx.
    """
    import requests

    at = str(int(time.time()))
    signed = hmac.new(webhook_secret(), b".".join((identity.encode(), at.encode(), body)), "sha256")
    headers = {
        "Content-Type": "application/cloudevents+json",
        "webhook-id": identity,
        "webhook-timestamp": at,
        "webhook-signature": f"v1,{base64.b64encode(signed.digest()).decode()}",
    }
    answer = requests.post(url, data=body, headers=headers, timeout=_SECONDS, allow_redirects=False)
    if not 200 <= answer.status_code < 300:
        raise ConnectionError(f"{answer.status_code} {answer.reason}")


def receiver_name(url: str) -> str:
    """A receiver's name in paths: its URL may be a secret."""
    return f"webhook-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
