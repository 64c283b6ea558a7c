"""Candidates that passed the gate and wait for a person's approval, in the store.

An approval is of one candidate, against one state of the log, with one verdict. What is released
then is what was stored when it was asked for, whatever has become of the code since.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tasks.contracts.base import Contract, digest_of
from tasks.contracts.release import VERSION_DIGITS
from tasks.release.inputs import ReleaseInputs
from tasks.release.provenance import release_digest
from tasks.storage.store import Store


class Proposal(Contract):
    """A candidate that waits.

    Attributes:
        key: Of candidate, log and verdict.
        run_id, run_name: The run that waits.
        version, digest: Of the candidate's files.
        inputs: What is released if it is approved.
        asked_at, deadline: UTC, ISO 8601. After the deadline it counts as rejected.
        superseded_by: The run with a newer candidate; empty without one.
    """

    key: str
    run_id: str
    run_name: str
    version: str
    digest: str
    inputs: ReleaseInputs
    asked_at: str
    deadline: str
    superseded_by: str = ""

    @property
    def is_late(self) -> bool:
        """Whether its deadline has passed."""
        return datetime.now(UTC) > datetime.fromisoformat(self.deadline)


def make_proposal(
    store: Store, inputs: ReleaseInputs, run_id: str, run_name: str, hours: float
) -> Proposal:
    """A proposal of a candidate, not yet stored.

    Args:
        store: The store.
        inputs: What is to be released.
        run_id, run_name: The run that waits.
        hours: How long.
    """
    digest = release_digest(inputs.candidate, store)
    verdict = inputs.candidate.gate_result.verdict
    now = datetime.now(UTC)
    return Proposal(
        key=digest_of([digest, inputs.log_number, verdict]),
        run_id=run_id,
        run_name=run_name,
        version=digest[:VERSION_DIGITS],
        digest=digest,
        inputs=inputs,
        asked_at=now.isoformat(timespec="seconds"),
        deadline=(now + timedelta(hours=hours)).isoformat(timespec="seconds"),
    )


def write_proposal(store: Store, proposal: Proposal) -> None:
    """Store a proposal, in place of an earlier one of its run."""
    store.objects.write(_path(proposal.run_id), proposal.model_dump_json(indent=1).encode())


def read_proposal(store: Store, run_id: str) -> Proposal | None:
    """The proposal of a run; None without one."""
    found = store.read_json(_path(run_id))
    return Proposal.model_validate(found) if found else None


def delete_proposal(store: Store, run_id: str) -> None:
    """Forget a proposal that was answered, or is not of the present any more."""
    store.objects.delete(_path(run_id))


def proposals(store: Store) -> list[Proposal]:
    """All proposals that are stored, the oldest first."""
    paths = [path for path in store.objects.sizes("approvals/") if path.endswith(".json")]
    found = [read_proposal(store, path.rpartition("/")[2].removesuffix(".json")) for path in paths]
    return sorted(filter(None, found), key=lambda each: each.asked_at)


def _path(run_id: str) -> str:
    return f"approvals/{run_id}.json"
