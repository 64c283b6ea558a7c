"""The recipe's section on new data."""

from __future__ import annotations

from pydantic import Field

from tasks.contracts.base import Contract


class WatchRecipe(Contract):
    """When new data start a retraining."""

    every_minutes: float = Field(
        0,
        ge=0,
        le=10_080,
        title="Every",
        description="Minutes between two looks at the data. 0: the data are not watched. 60 is "
        "often enough where `burnish data-changed` announces changes: it wakes the watch at once.",
    )
    quiet_minutes: float = Field(
        5,
        ge=0,
        le=10_080,
        title="Quiet period",
        description="For so long nothing must have changed: files that are still arriving are not "
        "trained on.",
    )
    longest_wait_minutes: float = Field(
        120,
        ge=0,
        le=525_600,
        title="Longest wait",
        description="After so long a wait for quiet, what is there is trained on.",
    )
    min_rows: int = Field(
        0,
        ge=0,
        title="Least rows",
        description="So many more rows, or so many fewer, are worth a retraining.",
    )
    min_share: float = Field(
        0,
        ge=0,
        le=10,
        title="Least share",
        description="The same, as a share of the rows of the last retraining.",
    )
    max_age_hours: float = Field(
        0,
        ge=0,
        title="Oldest change",
        description="A change that is so old is worth a retraining, however small. 0: never.",
    )
    attempts: int = Field(
        3,
        ge=1,
        le=100,
        title="Attempts",
        description="So often the same data are tried, if runs fail for causes that may pass.",
    )
    max_shrink: float = Field(
        0.2,
        ge=0,
        le=1,
        title="Largest loss",
        description="If a larger share of the rows is gone, somebody must confirm it first: "
        "`burnish accept-data`.",
    )
