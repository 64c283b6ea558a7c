"""What both bootstraps share: the number of resamples, and random seeds derived from the data.

The same outcomes always give the same verdict, because no seed comes from a clock or a setting.
"""

from __future__ import annotations

import hashlib

RESAMPLES = 9_999
MANY_EXAMPLES = 20_000
"""With more examples, the normal distribution takes the place of resampling, or fewer are drawn."""


def seed_of(*parts: bytes) -> int:
    """A seed of 128 bits, derived from the bytes of the data."""
    digest = hashlib.sha256(b"".join(parts)).digest()
    return int.from_bytes(digest[:16], "little")
