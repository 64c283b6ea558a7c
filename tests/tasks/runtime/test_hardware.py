"""What is found out about the machine."""

from tasks.runtime import hardware


class TestTheMachine:
    def test_has_memory_and_a_name(self):
        assert hardware.found_memory("cpu") > 10**9
        assert "cores" in hardware.device_kind("cpu")

    def test_has_the_memory_that_is_declared(self):
        assert hardware.found_memory("cuda", 24) == 24 * 10**9

    def test_reports_a_card_by_nvidia_smi(self, tmp_path, monkeypatch):
        asked = tmp_path / "nvidia-smi"
        asked.write_text('#!/bin/sh\ncase "$1" in *name*) echo "A Card";; *) echo 24564;; esac\n')
        asked.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        assert hardware.found_memory("cuda") == 24564 * 2**20
        assert hardware.device_kind("cuda") == "A Card"
