"""The deployment log of a model and channel: numbered entries, each created only once.

This log is the truth about what is deployed; targets, pointers and events are copies of it. A
consumer needs nothing else to know what to serve.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import orjson

from tasks.contracts.errors import BaselineMoved, StorageFailed
from tasks.contracts.release import LogEntry, Release
from tasks.storage.store import Store

_ENTRY = re.compile(r"(\d{8})\.json")


def entries(store: Store, name: str, channel: str, after: int = 0) -> list[LogEntry]:
    """The log's entries with a number above `after`, in order."""
    numbers = [number for number in _numbers(store, f"logs/{name}/{channel}/") if number > after]
    return [_read(store, name, channel, number) for number in numbers]


def all_logs(store: Store, name: str = "") -> list[tuple[str, str]]:
    """The models and channels that have a log; of one model if it is named."""
    paths = store.objects.sizes(f"logs/{name}/" if name else "logs/")
    return sorted({(model, channel) for _, model, channel, *_ in (p.split("/") for p in paths)})


def known_logs(store: Store) -> list[str]:
    """The models and channels that have a log, as `model on channel`."""
    return [f"{name} on {channel}" for name, channel in all_logs(store)]


def head(store: Store, name: str, channel: str) -> LogEntry | None:
    """The newest entry of any kind; None for an empty log."""
    numbers = _numbers(store, f"logs/{name}/{channel}/")
    return _read(store, name, channel, numbers[-1]) if numbers else None


def deployed(store: Store, name: str, channel: str) -> LogEntry | None:
    """The entry of the release that is served now; None before the first one."""
    return next(
        (entry for entry in newest_first(store, name, channel) if entry.kind == "deployed"), None
    )


def entry(store: Store, name: str, channel: str, number: int) -> LogEntry:
    """The entry with a number.

    Raises:
        StorageFailed: There is none, or it cannot be read.
    """
    return _read(store, name, channel, number)


def newest_first(store: Store, name: str, channel: str) -> Iterator[LogEntry]:
    """The log's entries, read one by one from the newest to the oldest."""
    for number in reversed(_numbers(store, f"logs/{name}/{channel}/")):
        yield _read(store, name, channel, number)


def readable_entries(store: Store, name: str, channel: str) -> dict[int, LogEntry | None]:
    """The log's entries by number, in order; None for one that is damaged."""
    found: dict[int, LogEntry | None] = {}
    for number in _numbers(store, f"logs/{name}/{channel}/"):
        found[number] = None
        with contextlib.suppress(StorageFailed):
            found[number] = _read(store, name, channel, number)
    return found


def replace_damaged(
    store: Store, name: str, channel: str, number: int, mended: LogEntry | None
) -> None:
    """Replace a damaged entry, or remove it. Its bytes are kept beside it.

    Args:
        store: The store with the log.
        name, channel: The model and its channel.
        number: The entry's number.
        mended: What it was; None to remove it.
    """
    path = entry_path(name, channel, number)
    damaged = store.objects.read(path)
    if damaged:
        store.objects.write(f"{path}.damaged", damaged[0])
    if mended is None:
        store.objects.delete(path)
    else:
        store.objects.write(path, mended.model_dump_json(indent=1).encode())


def append(store: Store, entry: LogEntry) -> LogEntry:
    """Append an entry at its number.

    Raises:
        BaselineMoved: Another entry has that number.
    """
    name, channel = entry.release.name, entry.release.channel
    data = entry.model_dump_json(indent=1).encode()
    if not store.objects.create(entry_path(name, channel, entry.number), data):
        raise moved(name, channel, entry.number)
    return entry


def following(newest: LogEntry | None, kind: str, run: str, **values: Any) -> LogEntry:
    """The entry that is to follow the newest one; what stands there goes on to stand.

    Args:
        newest: The newest entry; None for an empty log.
        kind: Of the new entry.
        run: Who writes it.
        values: Other fields.
    """
    standing = {"quarantined": newest.quarantined, "frozen": newest.frozen} if newest else {}
    number = newest.number + 1 if newest else 1
    return LogEntry(
        **{"number": number, "kind": kind, "at": utc_now(), "run": run, **standing, **values}
    )


def check_not_replaced(store: Store, entry: LogEntry) -> None:
    """Check that nobody has begun to reveal another release since an entry was written.

    Raises:
        BaselineMoved: Somebody has.
    """
    name, channel = entry.release.name, entry.release.channel
    for newer in entries(store, name, channel, after=entry.number):
        if newer.kind in ("revealing", "deployed"):
            raise moved(name, channel, newer.number)


def claim(
    store: Store,
    release: Release,
    log_number: int,
    run: str,
    **values: Any,
) -> LogEntry:
    """Claim the right to reveal a release. The entry's number is the claim's fencing number.

    Args:
        store: The store with the log.
        release: The release to reveal.
        log_number: Number of the log's newest entry when the verdict was reached; 0 for an empty
            log.
        run: The claiming run's name.
        values: Other fields of the entry.

    Raises:
        BaselineMoved: The log has grown since, other than by an earlier claim for the same release.
    """
    newest = head(store, release.name, release.channel)
    if newest and newest.kind == "revealing" and newest.release.digest == release.digest:
        return newest
    if (newest.number if newest else 0) != log_number:
        raise moved(release.name, release.channel, log_number + 1)
    return append(store, following(newest, "revealing", run, release=release, **values))


def moved(name: str, channel: str, number: int) -> BaselineMoved:
    """The error for a log that has grown since it was read."""
    return BaselineMoved(
        f"log of {name}/{channel}",
        f"another entry {number}",
        "the log as it was when the verdict was reached",
        "start the run again: the gate then compares with what is deployed now",
    )


def utc_now() -> str:
    """The time now: UTC, ISO 8601, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def entry_path(name: str, channel: str, number: int) -> str:
    """The path of an entry in the store."""
    return f"logs/{name}/{channel}/{number:08d}.json"


def _numbers(store: Store, prefix: str) -> list[int]:
    names = (path.rsplit("/", 1)[1] for path in store.objects.sizes(prefix))
    # A file manager may leave other files here.
    return sorted(int(match[1]) for name in names if (match := _ENTRY.fullmatch(name)))


def _read(store: Store, name: str, channel: str, number: int) -> LogEntry:
    path = entry_path(name, channel, number)
    found = store.objects.read(path)
    try:
        return LogEntry.model_validate(orjson.loads(found[0] if found else b""))
    except ValueError as error:
        raise StorageFailed(
            f"log entry {store.uri}/{path}",
            f"{len(found[0]) if found else 0} bytes that are no log entry "
            f"({str(error).splitlines()[0][:200]})",
            "the entry as it was written",
            f"run `burnish repair {name} --channel {channel}`, or restore this file from a backup",
        ) from error
