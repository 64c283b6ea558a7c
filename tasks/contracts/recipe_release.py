"""The recipe's part about releases: where they go, and which channel announces them."""

from __future__ import annotations

from pydantic import Field

from tasks.contracts.base import Contract

NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"


class PublishRecipe(Contract):
    """Where releases go."""

    targets: tuple[str, ...] = Field(
        (),
        title="Targets",
        description="Folders, s3://bucket/prefix, hf://owner/name. Empty: the store alone.",
    )
    private: bool = Field(
        True, title="Private", description="Whether a Hub repository that is created is private."
    )


class AnnounceRecipe(Contract):
    """Where releases are announced."""

    channel: str = Field(
        "production",
        pattern=NAME,
        title="Channel",
        description="The log that the release is entered in: production, staging…",
    )
