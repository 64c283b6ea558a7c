"""How often a test set has been looked at: each verdict on it makes a lucky pass more likely.

Looks are counted by the rows that verdicts share, so that a few new rows do not reset the count,
and fresh rows do earn something (Renggli et al. 2019, "Continuous Integration of Machine Learning
Models with ease.ml/ci", MLSys).

In the store, `looks/<model>/<test set>/` has a numbered record for each comparison, and `rows.npy`,
the hashes of the test set's inputs.
"""

from __future__ import annotations

import io
import re
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import orjson

from tasks.contracts.artifacts import Artifact
from tasks.contracts.base import digest_of
from tasks.contracts.results import Scored
from tasks.storage.store import Store

_RECORD = re.compile(r"(\d{8})\.json")
_ROWS = "rows.npy"


class Look(NamedTuple):
    """One use of a test set.

    Attributes:
        number: How many verdicts have used exactly this test set, this one included.
        looks: How many verdicts have used its rows, this one included: the share of its rows that
            each earlier verdict used is added up.
    """

    number: int
    looks: float


def count_look(
    store: Store, name: str, test_digest: str, rows: np.ndarray, candidate: Scored, baseline: str
) -> Look:
    """Count a comparison on a test set. Repeating a comparison does not count again.

    Args:
        store: The store.
        name: The model.
        test_digest: The test set's identity.
        rows: Hashes of its inputs, uint64, shape (n, 2), at least one.
        candidate: The candidate's scores.
        baseline: Digest of the model that it is compared with.
    """
    prefix = f"looks/{name}/{test_digest}/"
    comparison = digest_of([candidate.model_digest, baseline])
    sets = _test_sets(store, name)
    mine = sets.get(test_digest, [])
    for number in mine:
        found = _read(store, f"{prefix}{number:08d}.json")
        if found.get("comparison") == comparison:
            return Look(number, found.get("looks", float(number)))
    looks = 1.0 + len(mine)
    for other, numbers in sets.items():
        if other != test_digest:
            looks += len(numbers) * _shared(store, f"looks/{name}/{other}/{_ROWS}", rows)
    looks = round(looks, 2)
    if not mine:
        _write_rows(store, prefix + _ROWS, rows)
    record = {
        "comparison": comparison,
        "looks": looks,
        "model": candidate.model_digest,
        "scores": candidate.artifact.model_dump(mode="json"),
    }
    number, data = len(mine) + 1, orjson.dumps(record)
    while not store.objects.create(f"{prefix}{number:08d}.json", data):
        number += 1
    return Look(number, looks)


def earlier_scores(
    store: Store, name: str, most: int, wanted: Collection[str] = ()
) -> dict[str, Artifact]:
    """The score tables of earlier candidates by their models' digests: those on the test sets with
    the most verdicts, the newest first.

    Args:
        store, name: The store, and the model.
        most: How many, at most.
        wanted: Digests of models that are looked for besides, however old they are.
    """
    found: dict[str, Artifact] = {}
    sets = _test_sets(store, name)
    for test_digest in sorted(sets, key=lambda each: (-len(sets[each]), each)):
        for number in reversed(sets[test_digest]):
            others = len(found.keys() - set(wanted))
            if others >= most and set(wanted) <= found.keys():
                return found
            record = _read(store, f"looks/{name}/{test_digest}/{number:08d}.json")
            if "scores" in record and (others < most or record["model"] in wanted):
                found.setdefault(record["model"], Artifact.model_validate(record["scores"]))
    return found


def _test_sets(store: Store, name: str) -> dict[str, list[int]]:
    """The numbers of each test set's records."""
    found: dict[str, list[int]] = {}
    prefix = f"looks/{name}/"
    for path in store.objects.sizes(prefix):
        test_digest, _, file = path.removeprefix(prefix).partition("/")
        if match := _RECORD.fullmatch(file):
            found.setdefault(test_digest, []).append(int(match[1]))
    return {test_digest: sorted(numbers) for test_digest, numbers in found.items()}


def _read(store: Store, path: str) -> dict:
    data = (store.objects.read(path) or (b"",))[0]
    try:
        return orjson.loads(data)
    except ValueError:
        # An older version wrote the comparison alone.
        return {"comparison": data.decode(errors="replace")}


def _shared(store: Store, path: str, rows: np.ndarray) -> float:
    """The share of the rows that another test set has; 1 if that one's rows are not known."""
    found = store.objects.read(path)
    try:
        others = np.load(io.BytesIO(found[0] if found else b""), allow_pickle=False)
    except (ValueError, EOFError):
        return 1.0
    # The first half of a hash of 128 bits is enough to tell inputs apart.
    return float(np.isin(rows[:, 0], others).mean())


def _write_rows(store: Store, path: str, rows: np.ndarray) -> None:
    out = io.BytesIO()
    np.save(out, np.unique(rows[:, 0]))
    store.objects.create(path, out.getvalue())
