"""What is found out about the machine."""

import pytest

from tasks.runtime import hardware


class TestTheMachine:
    def test_has_memory_and_a_name(self):
        assert hardware.found_memory("cpu") > 10**9
        assert "cores" in hardware.device_kind("cpu")

    def test_has_the_memory_that_is_declared(self):
        assert hardware.found_memory("cuda", 24) == 24 * 10**9


class TestGpus:
    """Of a machine with three; those that the process may not use do not count."""

    @pytest.fixture(autouse=True)
    def three(self, tmp_path, monkeypatch):
        lines = [
            "GPU-aa1, NVIDIA H200, 143771",
            "GPU-bb2, NVIDIA L4, 23034",
            "GPU-cc3, NVIDIA L4, 23034",
        ]
        asked = tmp_path / "nvidia-smi"
        asked.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(lines) + "\nEND\n")
        asked.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def test_are_described_by_the_first(self):
        assert hardware.count_gpus() == 3
        assert hardware.found_memory("cuda") == 143771 * 2**20
        assert hardware.device_kind("cuda") == "NVIDIA H200"

    @pytest.mark.parametrize(
        ("visible", "names"),
        [
            ("1", ["NVIDIA L4"]),
            ("2,0", ["NVIDIA L4", "NVIDIA H200"]),
            ("GPU-a", ["NVIDIA H200"]),
            ("GPU-bb2,GPU-cc3", ["NVIDIA L4", "NVIDIA L4"]),
            ("0,7,1", ["NVIDIA H200"]),
            ("MIG-1234", ["NVIDIA H200 MIG"]),
            ("", []),
            ("-1", []),
        ],
    )
    def test_are_those_that_the_process_may_use(self, monkeypatch, visible, names):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert [gpu.name for gpu in hardware.visible_gpus()] == names
        assert hardware.has_gpu() == bool(names)
        expected = names[0] if names else "unknown GPU"
        assert hardware.device_kind("cuda") == expected
