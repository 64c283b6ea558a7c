"""When two machines would train alike."""

import pytest

from tests.tasks.plan.conftest import CONVERTER, gpu_machine, machine


class TestDifferences:
    def test_there_are_none_of_equal_machines(self):
        assert gpu_machine().differences(gpu_machine()) == []

    def test_a_little_memory_is_none(self):
        assert machine().differences(machine(memory=15_900_000_000)) == []

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"libraries": {"torch": "2.13.0"}}, "torch absent there, 2.13.0 here"),
            ({"kind": "B Card"}, "kind 'A Card' there, 'B Card' here"),
            ({"gpus": 2}, "gpus 1 there, 2 here"),
            ({"memory": 80 * 10**9}, "memory 24.0 GB there, 80.0 GB here"),
            ({"lacks_to_compile": "the compiler g++"}, "lacks_to_compile"),
            (
                {"converter": CONVERTER.model_copy(update={"digest": "other"})},
                "another converter to GGUF",
            ),
            ({"converter": None}, "another converter to GGUF"),
        ],
    )
    def test_are_named(self, changes, words):
        found = gpu_machine().differences(gpu_machine(**changes))
        assert len(found) == 1 and words in found[0]
