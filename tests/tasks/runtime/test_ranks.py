"""The rank of a process, as torch's launcher sets it."""

from tasks.runtime import ranks


class TestRanks:
    def test_a_single_process_is_rank_0_of_1(self, monkeypatch):
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        assert (ranks.rank(), ranks.local_rank(), ranks.count()) == (0, 0, 1)

    def test_of_several_each_has_the_rank_of_its_environment(self, monkeypatch):
        for name, value in {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}.items():
            monkeypatch.setenv(name, value)
        assert (ranks.rank(), ranks.local_rank(), ranks.count()) == (5, 1, 8)
