"""Sections of the run report as markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tasks.contracts.forecast import Forecast, Workload, must_be_tight
from tasks.contracts.release import LogEntry
from tasks.contracts.results import Benchmarked
from tasks.contracts.verdict import RuleOutcome, Verdict
from tasks.runtime.hardware import GB

_DAY, _HOUR, _MINUTE = 86_400, 3_600, 60


def forecast_markdown(told: Forecast, load: Workload) -> str:
    """The run report's section on what training will take.

    Args:
        told: The forecast.
        load: How much there is to do.
    """
    lines = [_work_sentence(load)]
    if told.unknown:
        lines.append(f"Its memory could not be told: {told.unknown}.")
        return "\n\n".join(lines)
    lines.append(_memory_sentence(told))
    rows = [(part, size_words(size)) for part, size in told.parts.items() if size]
    lines.append(markdown_table(("memory at the fullest moment", "bytes"), rows))
    return "\n\n".join(lines)


def _memory_sentence(told: Forecast) -> str:
    how = "computed twice (checkpointing)" if told.checkpointing else "kept"
    sentence = (
        f"**{size_words(told.peak)}** at the fullest moment, with {told.micro_batch_tokens:,} "
        f"tokens at once and activations {how}; {told.trained_parameters:,} weights are trained."
    )
    if told.shipping_host:
        sentence += (
            f" Merging the adapter afterwards takes {size_words(told.shipping_host)} of the "
            "machine's own memory."
        )
    if not told.memory:
        return f"{sentence} How much the device has is not known."
    where = "card" if told.device == "cuda" else "machine"
    sentence += (
        f" The {where} has {size_words(told.memory)}, of which {size_words(told.reserve)} are left "
        f"alone."
    )
    if must_be_tight(told):
        sentence += " Memory is given back as soon as it is free, which takes longer."
    return sentence


def _work_sentence(load: Workload) -> str:
    much = f"{load.tokens:,} tokens, {load.epochs} times"
    words = f"{much}, in {load.steps:,} steps on {load.device_kind}"
    if load.seconds is None:
        return f"{words}: how long that takes is not known, for it was never measured there."
    return (
        f"{words}: about {_time_words(load.seconds)}, at the {load.tokens_per_second:,.0f} tokens "
        "a second of the last such training."
    )


def size_words(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / GB:,.2f} GB" if size >= GB else f"{size / 10**6:,.1f} MB"


def _time_words(seconds: float) -> str:
    for unit, name in ((_DAY, "days"), (_HOUR, "hours"), (_MINUTE, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} seconds"


def benchmarks_markdown(candidate: Benchmarked, baseline: Benchmarked | None) -> str:
    """The results side by side, for the report."""
    rows = []
    for task, metrics in candidate.results.items():
        theirs = baseline.results.get(task, {}) if baseline else {}
        for name, value in metrics.items():
            if "_stderr" in name:
                continue
            error = name.replace(name.split("/")[0], f"{name.split('/')[0]}_stderr", 1)
            rows.append(
                (
                    task,
                    name,
                    _shown(theirs.get(name), theirs.get(error)),
                    _shown(value, metrics.get(error)),
                    str(candidate.examples.get(task, "")),
                )
            )
    table = markdown_table(("task", "metric", "baseline", "candidate", "examples"), rows)
    return f"For information: the gate does not look at these.\n\n{table}"


def _shown(value: float | None, error: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" + (f" ± {error:.4f}" if error else "")


TARGET, CONTEXT = "▶", "·"


def samples_markdown(samples: Sequence[dict[str, Any]]) -> str:
    """The first examples as the model is trained on them, with training targets marked.

    Args:
        samples: For each, its `segments`: a `text`, and whether it is a `target`.
    """
    shown = []
    for sample in samples:
        lines = []
        for segment in sample["segments"]:
            mark = TARGET if segment["target"] else CONTEXT
            text = _shortened(segment["text"].replace("```", "'''"))
            lines += [f"{mark} {line}" for line in text.removesuffix("\n").split("\n")]
        shown.append("```text\n" + "\n".join(lines) + "\n```")
    said = f"Lines with {TARGET} are training targets; lines with {CONTEXT} are context only."
    return "\n\n".join([said, *shown])


def _shortened(text: str, most: int = 800) -> str:
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} […] {text[-half:]}"


def data_markdown(now: dict[str, Any], before: dict[str, Any] | None) -> str:
    """The data report: rows, labels or forms, what was dropped, what looks wrong, and what changed
    since the deployed release.

    Args:
        now, before: `report.json` of the dataset, and of the deployed release's; None before the
            first release.
    """
    # Data for language models have forms, and no labels.
    counted = now["labels"] if "labels" in now else {"rows": now["rows"]}
    table = [
        (name, *(f"{count:,}" for count in counts.values())) for name, counts in counted.items()
    ]
    lines = [
        f"- {now['rows_read']:,} rows were read, {sum(now['rows'].values()):,} are kept.",
        f"- {now['duplicates_dropped']:,} exact duplicates were dropped.",
        f"- {sum(now['leaks_dropped'].values()):,} examples were dropped because their inputs are "
        "also in a split that judges.",
        *(_label_lines(now) if "labels" in now else _form_lines(now)),
        f"- {now['near_duplicates']['estimate']:,} of {now['near_duplicates']['of']:,} validation "
        "and test examples closely resemble a training example (an estimate).",
        f"- Characters a text: {_percentiles(now['characters'])}.",
        f"- {data_changes(now, before)}",
        *(f"- Warning: {warning}." for warning in now["warnings"]),
    ]
    return (
        "\n".join(lines)
        + "\n\n"
        + markdown_table(("label" if "labels" in now else "", *now["rows"]), table)
    )


def _label_lines(now: dict[str, Any]) -> list[str]:
    return [f"- {now['conflicts']['inputs']:,} inputs have more than one label."]


def _form_lines(now: dict[str, Any]) -> list[str]:
    forms = ", ".join(f"{count:,} {form}" for form, count in now["forms"].items())
    lines = [f"- Rows were recognised as: {forms}."]
    if now["answer_characters"]:
        lines.append(f"- {now['several_answers']['inputs']:,} inputs have several answers.")
        lines.append(f"- Characters an answer: {_percentiles(now['answer_characters'])}.")
    return lines


def _percentiles(lengths: dict[str, int]) -> str:
    return ", ".join(f"{name} {value:,}" for name, value in lengths.items())


def data_changes(now: dict[str, Any], before: dict[str, Any] | None) -> str:
    """In one sentence, what changed since the deployed release's data."""
    if before is None:
        return "Nothing is deployed yet to compare with."
    more = sum(now["rows"].values()) - sum(before["rows"].values())
    if "labels" not in now or "labels" not in before:
        return f"Since the deployed release: {more:+,} kept rows."
    new = sorted(set(now["labels"]) - set(before["labels"]))
    gone = sorted(set(before["labels"]) - set(now["labels"]))
    return (
        f"Since the deployed release: {more:+,} kept rows"
        + (f"; new labels: {', '.join(new)}" if new else "; no new labels")
        + (f"; vanished labels: {', '.join(gone)}." if gone else "; none vanished.")
    )


def verdict_markdown(verdict: Verdict) -> str:
    """The gate table, and every rule in words."""
    table = markdown_table(
        ("", "rule", "candidate", "baseline", "difference"),
        [_rule_row(rule) for rule in verdict.rules],
    )
    sentences = "\n".join(f"- {rule.sentence}" for rule in verdict.rules)
    return f"{verdict.summary}\n\n{table}\n\n{sentences}"


def _rule_row(rule: RuleOutcome) -> tuple[str, ...]:
    mark = "✓" if rule.passed else ("✗" if rule.vetoes else "·")
    return (
        mark,
        rule.name,
        _number(rule.candidate),
        _number(rule.baseline),
        _number(rule.difference, "+.4f"),
    )


def _number(value: float | None, form: str = ".4f") -> str:
    return "" if value is None else format(value, form)


def release_facts(entry: LogEntry) -> list[tuple[str, str]]:
    """Where a release lies, and its event."""
    release = entry.release
    places = [publication.uri for publication in release.publications] or [release.artifact.uri]
    return [
        ("release", f"{release.name} {release.version} on {release.channel}"),
        *(("at", place) for place in places),
        ("event", entry.event.id if entry.event else ""),
    ]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table; `|` in cells is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
        for line in lines
    )
