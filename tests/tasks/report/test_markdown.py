"""Sections of the report as markdown."""

from tasks.contracts.forecast import Workload
from tasks.report import markdown
from tests.tasks.plan.conftest import forecast_of


class TestForecast:
    load = Workload(tokens=1000, epochs=3, steps=12, device_kind="A Card")

    def test_says_what_it_takes_by_part(self):
        text = markdown.forecast_markdown(forecast_of(), self.load)
        assert "**26.00 GB** at the fullest moment, with 2,048 tokens at once" in text
        assert "| weights | 16.00 GB |" in text
        assert "1,000,000 weights are trained" in text
        assert (
            "1,000 tokens, 3 times, in 12 steps on A Card: how long that takes is not known" in text
        )

    def test_says_what_merging_takes_of_the_machine(self):
        text = markdown.forecast_markdown(forecast_of(shipping_host=27 * 10**9), self.load)
        assert "Merging the adapter afterwards takes 27.00 GB of the machine's own memory." in text

    def test_says_how_long_where_that_is_known(self):
        load = self.load.model_copy(update={"tokens_per_second": 10.0})
        assert "about 5.0 minutes, at the 10 tokens a second" in markdown.forecast_markdown(
            forecast_of(), load
        )

    def test_says_what_could_not_be_forecast_of(self):
        text = markdown.forecast_markdown(forecast_of(unknown="no such kernel"), self.load)
        assert "could not be told: no such kernel" in text and "weights" not in text
