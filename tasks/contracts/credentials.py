"""Credentials where none must be: in recipes and forms, which are stored, logged and shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

SHAPES = {
    "a password in a URI": r"://[^/\s:@]*:[^/\s@]+@",
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "an AWS access key": r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{30,}",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a webhook's secret": r"\bwhsec_[A-Za-z0-9+/=]{16,}",
    "a signature in a URI": r"[?&](X-Amz-Signature|X-Amz-Security-Token|sig|token|api_key)=[^&\s]+",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
"""What they look like, in regular expressions that Python and JSON schemas (ECMA 262) share."""
ANY_SHAPE = "|".join(f"({shape})" for shape in SHAPES.values())


def credentials_in(values: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Where values have a credential, and of which kind; never the credential itself.

    Args:
        values: As read from YAML.
        path: Of the values, such as `data.uri`.
    """
    if isinstance(values, dict):
        for name, value in values.items():
            yield from credentials_in(name, path or "recipe")
            yield from credentials_in(value, f"{path}.{name}" if path else str(name))
    elif isinstance(values, list | tuple):
        for number, value in enumerate(values):
            yield from credentials_in(value, f"{path}.{number}")
    elif isinstance(values, str):
        for kind, shape in SHAPES.items():
            if re.search(shape, values):
                yield path, kind
