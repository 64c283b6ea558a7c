"""Stand-ins for tests of releases."""

from __future__ import annotations

from tasks.release import delivery

MODEL = ("tiny", "production")


def send_nowhere(monkeypatch):
    """Replace Prefect's server by a list of the entries whose events were sent; returns it."""
    sent = []
    monkeypatch.setattr(delivery, "send", lambda entry, context: sent.append(entry))
    return sent
