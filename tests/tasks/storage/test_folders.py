"""Local folders that several processes write to."""

import errno
import fcntl
import os
import subprocess
import sys
import threading

import pytest

from tasks.contracts.errors import StorageFailed
from tasks.storage.folders import (
    disk_full,
    file_sha256,
    locked,
    make_folder,
    rename,
    require_space,
    scratch_folder,
    sweep,
    write_errors,
)


@pytest.fixture
def flushed(monkeypatch):
    """Records the files and folders that are flushed to disk, by inode."""
    found, fsync = [], os.fsync

    def record(descriptor):
        found.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    return found


class TestDurability:
    def test_a_new_folder_s_name_is_flushed(self, tmp_path, flushed):
        make_folder(tmp_path / "a" / "b")
        assert flushed == [tmp_path.stat().st_ino, (tmp_path / "a").stat().st_ino]

    def test_an_existing_folder_costs_nothing(self, tmp_path, flushed):
        make_folder(tmp_path)
        assert flushed == []

    def test_a_new_name_is_flushed(self, tmp_path, flushed):
        (tmp_path / "a").write_text("x")
        rename(tmp_path / "a", tmp_path / "b")
        assert flushed == [tmp_path.stat().st_ino]


class TestLocked:
    def test_excludes_other_processes(self, tmp_path):
        held = tmp_path / "lock"
        with locked(held, keep=True), open(held) as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_a_kept_file_stays_so_that_waiters_share_it(self, tmp_path):
        with locked(tmp_path / "lock", keep=True):
            inode = (tmp_path / "lock").stat().st_ino
        with locked(tmp_path / "lock", keep=True):
            assert (tmp_path / "lock").stat().st_ino == inode

    def test_a_file_that_was_swept_before_it_was_locked_is_made_again(self, tmp_path, monkeypatch):
        flock, first = fcntl.flock, []

        def swept(descriptor, how):
            if not first:
                first.append(True)
                os.unlink(tmp_path / "lock")
            return flock(descriptor, how)

        monkeypatch.setattr(fcntl, "flock", swept)
        with locked(tmp_path / "lock", keep=False):
            assert (tmp_path / "lock").exists()

    def test_one_of_many_writers_at_a_time(self, tmp_path):
        inside, most = [], []

        def work():
            for _ in range(20):
                with locked(tmp_path / "lock", keep=True):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(most) == 1


class TestSweep:
    def test_removes_what_no_process_holds(self, tmp_path):
        (tmp_path / "write-left").write_text("half")
        with locked(tmp_path / "write-held", keep=True):
            sweep(tmp_path, "write-*")
            assert [path.name for path in tmp_path.iterdir()] == ["write-held"]


class TestScratchFolder:
    def test_of_a_killed_process_is_removed_by_the_next(self, tmp_path):
        code = (
            "import os, pathlib, signal\n"
            "from tasks.storage.folders import scratch_folder\n"
            f"with scratch_folder(pathlib.Path({str(tmp_path)!r})) as folder:\n"
            "    (folder / 'model').write_bytes(b'x')\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        subprocess.run([sys.executable, "-c", code])
        assert len(list(tmp_path.glob("work-*"))) == 2
        with scratch_folder(tmp_path) as mine:
            assert {path.stem for path in tmp_path.iterdir()} == {mine.name}
        assert list(tmp_path.iterdir()) == []


class TestFullDisk:
    def test_is_storage_and_says_how_much_is_needed(self, tmp_path):
        with pytest.raises(StorageFailed) as caught, write_errors(tmp_path / "a" / "model", 96e6):
            raise OSError(errno.ENOSPC, "No space left on device")
        assert "no disk space" in caught.value.found
        assert caught.value.expected == "room for 96.0 MB"

    def test_is_refused_before_a_copy_begins(self, tmp_path):
        with pytest.raises(StorageFailed, match="no disk space"):
            require_space(tmp_path, 10**18)
        require_space(tmp_path, 1)

    def test_names_a_place_that_does_not_exist_yet(self, tmp_path):
        assert "MB free" in disk_full(tmp_path / "a" / "b" / "c", 1).found


def test_other_errors_of_the_file_system_are_storage_too(tmp_path):
    with pytest.raises(StorageFailed, match="Input/output error"), write_errors(tmp_path, 1):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_file_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    assert file_sha256(tmp_path / "a").startswith("ba7816bf 8f01cfea".replace(" ", ""))
