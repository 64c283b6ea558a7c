"""Which gains a test set detects."""

import functools

import numpy as np
import pytest

from tasks.gate import exact_tests, power


class TestPower:
    def test_matches_simulation(self):
        random = np.random.default_rng(3)
        draws = random.multinomial(400, [0.08, 0.04, 0.88], size=2000)
        p_value = functools.cache(lambda g, x: exact_tests.superiority_p(g, x, 400))
        shown = [p_value(int(g), int(x)) <= 0.05 for g, x, _ in draws]
        expected = power.superiority_power(400, 0.12, 0.04, 0.05)
        assert expected == pytest.approx(np.mean(shown), abs=0.025)

    def test_detectable_gain_has_the_requested_power(self):
        gain = power.detectable_gain(334, 8 / 334)
        assert 0.018 < gain < 0.03
        assert power.superiority_power(334, 8 / 334, gain, 0.05) == pytest.approx(0.8, abs=0.01)

    def test_approaches_the_normal_formula_on_many_examples(self):
        normal = (1.6449 + 0.8416) * np.sqrt(0.2 / 50_000)
        assert power.detectable_gain(50_000, 0.2) == pytest.approx(normal, rel=0.03)
        assert power.detectable_by_error(np.sqrt(0.2 / 50_000)) == pytest.approx(normal, abs=1e-4)

    def test_a_handful_of_examples_detects_nothing(self):
        assert power.detectable_gain(4, 0.1) is None
        assert power.detectable_by_error(0.0) is None

    def test_more_examples_detect_smaller_gains(self):
        gains = [power.detectable_gain(n, 0.1) for n in (50, 200, 800, 3200)]
        assert gains == sorted(gains, reverse=True)

    @pytest.mark.parametrize(("examples", "discordance"), [(150, 0.1), (400, 0.05)])
    def test_equally_good_candidates_pass_as_often_as_said(self, examples, discordance):
        share = discordance / 2
        draws = np.random.default_rng(5).multinomial(
            examples, [share, share, 1 - discordance], size=1500
        )
        passed = [
            exact_tests.noninferiority_p(int(g), int(x), examples, 0.02) <= 0.05
            for g, x, _ in draws
        ]
        expected = power.equal_passes(examples, discordance, 0.02)
        assert expected == pytest.approx(np.mean(passed), abs=0.04)
        needed = power.examples_for(examples, (discordance / examples) ** 0.5, 0.02)
        assert power.equal_passes(needed, discordance, 0.02) == pytest.approx(0.8, abs=0.05)

    def test_gain_above_the_discordance_is_refused(self):
        with pytest.raises(ValueError, match="impossible"):
            power.superiority_power(100, 0.05, 0.1, 0.05)

    @pytest.mark.parametrize("margin", [0.01, 0.02, 0.05])
    def test_least_examples_are_just_enough(self, margin):
        least = power.least_examples(margin)
        assert exact_tests.noninferiority_p(0, 0, least, margin) <= 0.05
        assert exact_tests.noninferiority_p(0, 0, least - 1, margin) > 0.05
