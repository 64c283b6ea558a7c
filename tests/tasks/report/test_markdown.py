"""Sections of the report as markdown."""

from tasks.contracts.artifacts import Artifact
from tasks.contracts.forecast import Workload
from tasks.contracts.results import Benchmarked
from tasks.report import markdown
from tests.tasks.plan.conftest import forecast_of


class TestTables:
    def test_escape_what_would_break_them(self):
        assert markdown.markdown_table(("a",), [("x|y\nz",)]).endswith("| x\\|y z |")


class TestDataChanges:
    def test_name_new_and_removed_labels(self):
        before = {"rows": {"train": 10}, "labels": {"a": {}, "b": {}}}
        now = {"rows": {"train": 13}, "labels": {"b": {}, "c": {}}}
        sentence = markdown.data_changes(now, before)
        assert "+3 rows" in sentence
        assert "new labels: c" in sentence
        assert "removed labels: a" in sentence


class TestForecast:
    load = Workload(tokens=1000, epochs=3, steps=12, device_kind="A Card")

    def test_shows_memory_by_part(self):
        text = markdown.forecast_markdown(forecast_of(), self.load)
        assert "**26.00 GB** at the peak, with 2,048 tokens per forward pass" in text
        assert "| weights | 16.00 GB |" in text
        assert "1,000,000 parameters are trained" in text
        assert "1,000 tokens per epoch, 3 epochs, 12 steps on A Card. The time is unknown" in text

    def test_shows_what_merging_takes_of_the_machine(self):
        text = markdown.forecast_markdown(forecast_of(merge_host_memory=27 * 10**9), self.load)
        assert "Merging the adapter afterwards takes 27.00 GB of the machine's own memory." in text

    def test_shows_the_time_if_it_is_known(self):
        load = self.load.model_copy(update={"tokens_per_second": 10.0})
        assert "About 5.0 minutes, at the 10 tokens per second" in markdown.forecast_markdown(
            forecast_of(), load
        )

    def test_gives_the_reason_if_there_is_none(self):
        text = markdown.forecast_markdown(forecast_of(unknown="no such kernel"), self.load)
        assert "could not be forecast: no such kernel" in text and "weights" not in text


class TestBenchmarks:
    def test_show_the_baseline_next_to_the_candidate(self):
        def of(value):
            return Benchmarked(
                artifact=Artifact(kind="benchmarks", digest="d" * 64, files=1, bytes=1, uri=""),
                results={"ships": {"f1/strict": value, "f1_stderr/strict": 0.0125}},
                examples={"ships": 9},
            )

        shown = markdown.benchmarks_markdown(of(0.5), of(0.25))
        assert "| ships | f1/strict | 0.2500 ± 0.0125 | 0.5000 ± 0.0125 | 9 |" in shown
        assert "| ships | f1/strict |  | 0.5000 ± 0.0125 | 9 |" in markdown.benchmarks_markdown(
            of(0.5), None
        )
