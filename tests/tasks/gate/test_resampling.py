"""Seeds that are derived from the data."""

from tasks.gate.resampling import seed_of


class TestSeedOf:
    def test_equal_data_has_an_equal_seed(self):
        assert seed_of(b"signs", b"data") == seed_of(b"signs", b"data")

    def test_other_data_has_another_seed(self):
        assert seed_of(b"signs", b"data") != seed_of(b"signs", b"date")
