"""What consumers see is read from the log when it is written."""

from datetime import UTC, datetime, timedelta

import pytest

from tasks.contracts.recipe_release import PublishRecipe
from tasks.release import deployment_log
from tasks.release.announce import announce
from tasks.release.publish import publish
from tasks.release.visibility import visible_now
from tests.tasks.release.samples import send_nowhere
from tests.tasks.samples import run_context

RUN = "calm-otter"


@pytest.fixture
def context(tmp_path, monkeypatch):
    send_nowhere(monkeypatch)
    return run_context(tmp_path, run_name=RUN)


@pytest.fixture
def began():
    return datetime.now(UTC)


@pytest.fixture
def claim(publishable, context):
    """A release that is revealed, and not announced."""
    return publish.fn(publishable(PublishRecipe()), context)


def visible(store, began, run=RUN):
    return visible_now(store, "tiny", "production", run, began)


class TestVisibleNow:
    def test_before_any_release(self, store, began):
        assert visible(store, began) == (
            "Nothing was published by this run. Deployed: nothing yet."
        )

    def test_of_a_release_that_is_not_announced(self, began, claim, store):
        version = claim.release.version
        # Whether this run or another one revealed them, "nothing was published" would be wrong.
        assert visible(store, began) == (
            f"Files of version {version} (run {RUN}) may be visible at some targets, but it is not "
            "announced; the next run finishes or replaces it. Deployed: nothing yet."
        )

    def test_of_an_earlier_run_s_release_that_this_run_finished(self, began, claim, context, store):
        other = context.model_copy(update={"run_name": "brave-lynx"})
        version = announce.fn(claim, other).release.version
        deployed = f"Deployed: version {version} on production."
        assert visible(store, began, "brave-lynx") == (
            f"Version {version} was released by this run. {deployed}"
        )
        assert visible(store, began) == f"Nothing was published by this run. {deployed}"

    def test_of_an_older_run_of_the_same_name(self, claim, context, store):
        announce.fn(claim, context)
        later = datetime.now(UTC) + timedelta(seconds=2)
        assert visible(store, later).startswith("Nothing was published by this run.")

    def test_of_a_log_that_cannot_be_read(self, claim, store, began):
        store.objects.write("logs/tiny/production/00000001.json", b"")
        sentence = visible(store, began)
        assert sentence.startswith("Unknown, since the log cannot be read: log entry")

    def test_names_an_event_that_is_owed(self, began, claim, context, store, monkeypatch):
        def away(*_):
            raise ConnectionError

        monkeypatch.setattr("tasks.release.delivery.send", away)
        version = announce.fn(claim, context).release.version
        assert f"The event of version {version} has not reached Prefect" in visible(store, began)
        assert deployment_log.deployed(store, "tiny", "production").release.version == version
