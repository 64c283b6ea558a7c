"""One of several workers does the work; the others wait, or take over."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tasks.runtime import lease as leases
from tasks.runtime.context import RunContext
from tasks.runtime.lease import Holder, LeaseLost, check_lease, held_number, lease
from tasks.runtime.telling import telling
from tasks.storage.objects import open_objects
from tests.tasks.runtime.programs import wait_until

PATH = "leases/finetune/abc.json"


@pytest.fixture(params=["folder", "s3"])
def objects(request, tmp_path):
    if request.param == "folder":
        return open_objects(str(tmp_path / "store"))
    return open_objects(f"s3://{request.getfixturevalue('s3_env')}/some/prefix")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(leases, "STALE_SECONDS", 1.0)


def run(name):
    return RunContext(store="", run_name=name)


def holder_of(objects):
    return Holder.model_validate_json(objects.read(PATH)[0])


def hold_elsewhere(objects, **changes):
    """Write the lease of a worker on another machine, which never renews it."""
    holder = Holder(
        number=4,
        nonce="other",
        run_name="calm-otter",
        host="gpu-7",
        since="2026-11-26T03:00:00+00:00",
        machine="another",
        pid=1,
        started=0.0,
    )
    objects.write(PATH, holder.model_copy(update=changes).model_dump_json().encode())


class TestLease:
    def test_is_held_inside_the_block_and_released_after_it(self, objects):
        with lease(objects, PATH, run("one")):
            assert (held_number(), holder_of(objects).run_name) == (1, "one")
            assert not holder_of(objects).released
            check_lease()
        assert holder_of(objects).released
        assert held_number() == 0

    def test_has_a_higher_number_for_each_holder(self, objects):
        for number in (1, 2, 3):
            with lease(objects, PATH, run("one")) as held:
                assert held.number == number

    def test_is_renewed(self, objects):
        with lease(objects, PATH, run("one")):
            wait_until(lambda: holder_of(objects).renewals > 2)

    def test_is_given_to_one_after_the_other(self, objects):
        inside, most = [], []

        def work(name):
            with lease(objects, PATH, run(name)):
                inside.append(name)
                most.append(len(inside))
                time.sleep(0.1)
                inside.remove(name)

        threads = [threading.Thread(target=work, args=(f"run-{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == [1, 1, 1, 1]


class Heard:
    """What a run says while it waits."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def status(self, sentence: str) -> None:
        self.said.append(sentence)


class TestWaiter:
    def test_says_for_whom_it_waits(self, objects):
        hold_elsewhere(objects)
        heard = Heard()
        with telling(heard), lease(objects, PATH, run("two")) as held:
            assert held.number == 5
        assert heard.said == [
            "Waiting for run calm-otter, which does the same work on gpu-7 since "
            "2026-11-26T03:00:00+00:00."
        ]

    def test_takes_over_from_a_holder_that_does_not_renew(self, objects):
        hold_elsewhere(objects)
        began = time.monotonic()
        with lease(objects, PATH, run("two")):
            assert time.monotonic() - began > leases.STALE_SECONDS

    def test_takes_over_at_once_from_a_process_that_was_killed_here(self, tmp_path):
        objects = open_objects(str(tmp_path / "store"))
        script = (
            "import time; from tasks.runtime.lease import lease; from tasks.storage.objects import "
            "open_objects; from tasks.runtime.context import RunContext\n"
            f"with lease(open_objects({objects.root!r}), {PATH!r}, RunContext(store='')):\n"
            "    time.sleep(60)"
        )
        process = subprocess.Popen([sys.executable, "-c", script])
        wait_until(lambda: objects.read(PATH), 30)
        process.send_signal(signal.SIGKILL)
        process.wait()
        began = time.monotonic()
        with lease(objects, PATH, run("two")) as held:
            assert held.number == 2
        assert time.monotonic() - began < leases.STALE_SECONDS

    @pytest.mark.parametrize("data", [b"", b"{", b'{"number": 1}'])
    def test_replaces_a_lease_that_cannot_be_read(self, objects, data):
        objects.write(PATH, data)
        with lease(objects, PATH, run("two")) as held:
            assert held.number == 1


class TestHolderThatWasPaused:
    def test_notices_that_it_lost(self, objects):
        with lease(objects, PATH, run("one")) as held:
            hold_elsewhere(objects)
            wait_until(lambda: lost(check_lease))
            with pytest.raises(LeaseLost):
                held.confirm()
        assert holder_of(objects).run_name == "calm-otter"

    def test_notices_it_at_the_latest_before_it_records(self, objects, monkeypatch):
        monkeypatch.setattr(leases, "RENEW_SECONDS", 60)
        with lease(objects, PATH, run("one")) as held:
            hold_elsewhere(objects)
            check_lease()
            with pytest.raises(LeaseLost):
                held.confirm()

    def test_works_on_while_the_store_is_away(self, tmp_path, monkeypatch):
        objects = open_objects(str(tmp_path / "store"))
        with lease(objects, PATH, run("one")) as held:
            before = holder_of(objects).renewals
            os.rename(tmp_path / "store", tmp_path / "away")
            (tmp_path / "store").write_text("no folder")
            time.sleep(0.5)
            held.check()
            os.remove(tmp_path / "store")
            os.rename(tmp_path / "away", tmp_path / "store")
            wait_until(lambda: holder_of(objects).renewals > before)
            held.confirm()


def lost(check):
    try:
        check()
    except LeaseLost:
        return True
    return False
