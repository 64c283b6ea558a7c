"""The recipe's sections on publishing and announcing releases."""

from __future__ import annotations

from pydantic import Field, field_validator

from tasks.contracts.base import Contract

NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
NAME_FORMAT = (
    "1 to 63 lower-case letters, digits and hyphens, beginning and ending with a letter or digit"
)


class PublishRecipe(Contract):
    """Where releases go."""

    targets: tuple[str, ...] = Field(
        (),
        title="Targets",
        description="Folders, s3://bucket/prefix, hf://owner/name. Empty: only the store.",
    )
    private: bool = Field(
        True, title="Private", description="Whether a Hub repository that is created is private."
    )
    license: str = Field(
        "",
        title="License",
        description="For the model card, such as apache-2.0. Empty: as the base model's card says.",
    )
    languages: tuple[str, ...] = Field(
        (),
        title="Languages",
        description="Of the texts, for the model card: codes such as en or de.",
    )


class AnnounceRecipe(Contract):
    """Where releases are announced."""

    channel: str = Field(
        "production",
        pattern=NAME,
        title="Channel",
        description="The deployment log that records the release, such as production or staging.",
    )
    webhooks: tuple[str, ...] = Field(
        (),
        title="Webhooks",
        description="URLs that get each deployment's event, signed as Standard Webhooks with "
        "$BURNISH_WEBHOOK_SECRET.",
    )

    @field_validator("webhooks")
    @classmethod
    def _are_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for number, url in enumerate(urls):
            # Not shown: its path may be a secret.
            if not url.startswith(("https://", "http://")):
                raise ValueError(f"entry {number + 1} is no URL that begins with https://")
        return urls
