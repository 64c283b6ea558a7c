"""The data report: counts, lengths, conflicts, near-duplicates and warnings."""

from __future__ import annotations

from tasks.load.splits import TRAIN
from tasks.report.markdown import data_markdown
from tests.tasks.samples import (
    faq_rows,
    kept_rows,
    load_data,
    report_of,
    run_context,
    some_rows,
    write_jsonl,
)


class TestReport:
    def test_duplicates_conflicts_and_counts(self, tmp_path):
        rows = some_rows(200)
        conflicts = [{**row, "label": "other"} for row in rows[:7]]
        path = write_jsonl(tmp_path / "a.jsonl", rows + rows[:30] + conflicts)
        context = run_context(tmp_path)
        loaded = load_data(path, context)
        report = report_of(loaded, context)
        assert report["rows_read"] == 237
        assert report["duplicates_dropped"] == 30
        assert report["conflicts"]["inputs"] == 7
        assert len(report["conflicts"]["examples"]) == 5
        assert "other" in report["conflicts"]["examples"][0]["labels"]
        assert sum(report["conflicts"]["rows_dropped"].values()) == 14
        [warning] = [each for each in loaded.warnings if "more than one label" in each]
        assert warning.startswith("7 texts with more than one label were left out (14 rows)")
        assert sum(loaded.rows.values()) == 193
        assert report["rows"] == loaded.rows
        for split, count in loaded.rows.items():
            assert sum(counts[split] for counts in report["labels"].values()) == count

    def test_lengths(self, tmp_path):
        rows = [{"text": str(n).zfill(5) * (n + 1), "label": str(n % 2)} for n in range(100)]
        context = run_context(tmp_path)
        lengths = report_of(load_data(write_jsonl(tmp_path / "a.jsonl", rows), context), context)
        assert 235 <= lengths["characters"]["p50"] <= 250
        assert 470 <= lengths["characters"]["p100"] <= 500

    def test_near_duplicates_across_splits(self, tmp_path):
        context = run_context(tmp_path)
        rows = [
            {
                "text": " ".join(row["text"] for row in some_rows(4, start=4 * n)),
                "label": str(n % 3),
            }
            for n in range(150)
        ]
        plain = load_data(write_jsonl(tmp_path / "a.jsonl", rows), context)
        assert report_of(plain, context)["near_duplicates"]["estimate"] == 0
        near = [{**row, "text": row["text"] + " Indeed."} for row in rows]
        loaded = load_data(write_jsonl(tmp_path / "a.jsonl", rows + near), context)
        kept = kept_rows(loaded, context)
        held = 0
        for row in rows:
            both = kept[row["text"]][1], kept[row["text"] + " Indeed."][1]
            held += TRAIN in both and both != (TRAIN, TRAIN)
        report = report_of(loaded, context)["near_duplicates"]
        assert 0.95 * held <= report["estimate"] <= held
        assert len(report["examples"]) == 5
        pair = report["examples"][0]
        assert pair["held_out"]["text"][:60] == pair["train"]["text"][:60]
        assert pair["split"] in ("validation", "test")
        assert "Broder 1997" in report["method"]


class TestLanguageReport:
    def test_row_formats_and_answers(self, tmp_path):
        rows = [{"text": row["a"]} for row in faq_rows()[:100]]
        rows += [{"prompt": row["q"], "completion": row["a"]} for row in faq_rows()[100:]]
        context = run_context(tmp_path)
        path = write_jsonl(tmp_path / "a.jsonl", rows)
        loaded = load_data(path, context, "completion")
        report = report_of(loaded, context)
        assert report["row_formats"] == {"prompt-completion": 403, "text": 100}
        assert "labels" not in report
        longest = max(len(row["a"]) for row in faq_rows()[100:])
        assert 15 / 16 * longest <= report["answer_characters"]["p100"] <= longest
        text = data_markdown(report, None)
        assert "- Row formats: 403 prompt-completion, 100 text." in text
        assert f"- {report['several_answers']['inputs']} inputs have several answers." in text
        assert f"| rows | {loaded.rows['train']} |" in text
        labelled = {"rows": {"train": 1}, "labels": {"a": {}}}
        for before in (report, labelled):
            assert "Since the deployed release: +" in data_markdown(report, before)
        plain = load_data(write_jsonl(path, rows[:100]), context, "completion")
        assert "answer" not in data_markdown(report_of(plain, context), None)

    def test_near_duplicates_are_shown_with_their_answers(self, tmp_path):
        rows = [{"prompt": f"{row['q']} {row['a']}", "completion": "Yes."} for row in faq_rows()]
        near = [{**row, "prompt": row["prompt"] + " Indeed."} for row in rows]
        context = run_context(tmp_path)
        path = write_jsonl(tmp_path / "a.jsonl", rows + near)
        found = report_of(load_data(path, context, "instruction"), context)["near_duplicates"]
        assert found["estimate"] > 50
        assert found["examples"][0]["train"]["answer"] == "Yes."


class TestLabelWarnings:
    def test_labels_that_are_missing_from_training(self, tmp_path):
        rows = [{**row, "part": "train"} for row in some_rows(50)]
        rows += [{**row, "part": "validation"} for row in some_rows(50, 50)]
        rows += [{**row, "part": "test", "label": "rare"} for row in some_rows(50, 100)]
        path = write_jsonl(tmp_path / "a.jsonl", rows)
        loaded = load_data(path, run_context(tmp_path), split={"by": "column", "column": "part"})
        assert "No training example has the label 'rare'" in loaded.warnings
        assert "The test split has the label 'rare', never seen in training" in loaded.warnings

    def test_labels_that_no_row_has(self, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", some_rows(100))
        loaded = load_data(
            path, run_context(tmp_path), labels=["business", "sports", "tech", "art"]
        )
        assert loaded.warnings == ("data.labels names the label 'art', which no row has",)
        assert loaded.labels == ("business", "sports", "tech")
