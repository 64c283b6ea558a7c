"""A person's word before a release."""

from __future__ import annotations

from typing import Literal

from tasks.contracts.base import Contract


class Answer(Contract):
    """What a person decided.

    Attributes:
        decision: Whether to release it.
        by: Who, as stated: Prefect's open server knows no users.
        reason: Why.
    """

    decision: Literal["approve", "reject"]
    by: str
    reason: str
