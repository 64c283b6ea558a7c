"""What is found out about the machine."""

import pytest

from tasks.runtime import hardware
from tasks.runtime.machine import this_machine


class TestTheMachine:
    def test_has_memory_and_a_processor_with_a_name(self):
        assert hardware.host_memory() > 10**9
        assert "cores" in hardware.processor_kind()


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

    def test_describe_the_machine_by_the_first(self):
        machine = this_machine(("pytest", "no-such-package"))
        assert (machine.device, machine.gpus, machine.kind) == ("cuda", 3, "NVIDIA H200")
        assert machine.memory == 143771 * 2**20 and machine.bf16
        assert machine.libraries["no-such-package"] == "absent"
        assert machine.libraries["pytest"] == pytest.__version__

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
        machine = this_machine()
        assert machine.gpus == len(names)
        assert machine.device == ("cuda" if names else "cpu")
