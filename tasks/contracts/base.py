"""The base of every contract, and how a contract becomes part of a cache key."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

import orjson
from pydantic import BaseModel, ConfigDict


class Contract(BaseModel):
    """A frozen model that refuses unknown fields.

    Attributes:
        cache_key_excludes: Fields that cannot change the result (paths, counts, run names), so they
            are left out of cache keys.
    """

    # NaN is written as a string: as null, it could not be read back as a number.
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings"
    )

    cache_key_excludes: ClassVar[frozenset[str]] = frozenset()

    def key_part(self) -> dict[str, Any]:
        """The fields that decide a result, as plain JSON values."""
        return {
            name: _plain(getattr(self, name))
            for name in type(self).model_fields
            if name not in self.cache_key_excludes
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Contract):
        return value.key_part()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def digest_of(value: Any) -> str:
    """SHA-256 (64 hexadecimal digits) of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(orjson.dumps(_plain(value), option=orjson.OPT_SORT_KEYS)).hexdigest()
