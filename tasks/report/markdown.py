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


def forecast_markdown(forecast: Forecast, work: Workload) -> str:
    """The section on the memory and time that training needs."""
    lines = [_work_sentence(work)]
    if forecast.unknown:
        lines.append(f"Its memory could not be forecast: {forecast.unknown}.")
        return "\n\n".join(lines)
    lines.append(_memory_sentence(forecast))
    rows = [(part, size_words(size)) for part, size in forecast.parts.items() if size]
    lines.append(markdown_table(("part of memory at the peak", "bytes"), rows))
    return "\n\n".join(lines)


def _memory_sentence(forecast: Forecast) -> str:
    how = "recomputed (checkpointing)" if forecast.checkpointing else "kept"
    sentence = (
        f"**{size_words(forecast.peak)}** at the peak, with {forecast.micro_batch_tokens:,} "
        f"tokens per forward pass and activations {how}; "
        f"{forecast.trained_parameters:,} parameters are trained."
    )
    if forecast.merge_host_memory:
        merge = size_words(forecast.merge_host_memory)
        sentence += f" Merging the adapter afterwards takes {merge} of the machine's own memory."
    if not forecast.memory:
        return f"{sentence} The device's memory is unknown."
    if forecast.device != "cuda":
        sentence += " The libraries that the process loads come on top."
    where = "card" if forecast.device == "cuda" else "machine"
    sentence += (
        f" The {where} has {size_words(forecast.memory)}, with a reserve of "
        f"{size_words(forecast.reserve)}."
    )
    if must_be_tight(forecast):
        sentence += " Freed memory is returned to the system at once, which is slower."
    return sentence


def _work_sentence(work: Workload) -> str:
    amount = (
        f"{work.tokens:,} tokens per epoch, {work.epochs} epochs, {work.steps:,} steps on "
        f"{work.device_kind}"
    )
    if work.seconds is None:
        return f"{amount}. The time is unknown until a similar training was measured there."
    return (
        f"{amount}. About {time_words(work.seconds)}, at the {work.tokens_per_second:,.0f} tokens "
        "per second of the last similar training."
    )


def size_words(size: int) -> str:
    """A number of bytes with a readable unit."""
    return f"{size / GB:,.2f} GB" if size >= GB else f"{size / 10**6:,.1f} MB"


def time_words(seconds: float) -> str:
    """A duration with a readable unit."""
    for unit, name in ((_DAY, "days"), (_HOUR, "hours"), (_MINUTE, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} seconds"


def benchmarks_markdown(candidate: Benchmarked, baseline: Benchmarked | None) -> str:
    """Both models' benchmark results side by side."""
    rows = []
    for task, metrics in candidate.results.items():
        reference = baseline.results.get(task, {}) if baseline else {}
        for name, value in metrics.items():
            if "_stderr" in name:
                continue
            error = name.replace(name.split("/")[0], f"{name.split('/')[0]}_stderr", 1)
            rows.append(
                (
                    task,
                    name,
                    _shown(reference.get(name), reference.get(error)),
                    _shown(value, metrics.get(error)),
                    str(candidate.examples.get(task, "")),
                )
            )
    table = markdown_table(("task", "metric", "baseline", "candidate", "examples"), rows)
    return f"For information only: the gate does not use these.\n\n{table}"


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
    legend = f"Lines with {TARGET} are training targets; lines with {CONTEXT} are context only."
    return "\n\n".join([legend, *shown])


def _shortened(text: str, most: int = 800) -> str:
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} […] {text[-half:]}"


def data_markdown(now: dict[str, Any], before: dict[str, Any] | None) -> str:
    """The data report: rows, labels or row formats, what was dropped, and what changed since the
    deployed release.

    Args:
        now, before: `report.json` of the dataset, and of the deployed release's; None before the
            first release.
    """
    # Data for language models have row formats, and no labels.
    counted = now["labels"] if "labels" in now else {"rows": now["rows"]}
    table = [
        (name, *(f"{count:,}" for count in counts.values())) for name, counts in counted.items()
    ]
    lines = [
        f"- {now['rows_read']:,} rows were read, {sum(now['rows'].values()):,} were kept.",
        f"- {now['duplicates_dropped']:,} exact duplicates were dropped.",
        f"- {sum(now['leaks_dropped'].values()):,} examples were dropped because their inputs are "
        "also in the validation or test split.",
        *(_label_lines(now) if "labels" in now else _row_format_lines(now)),
        f"- {now['near_duplicates']['estimate']:,} of {now['near_duplicates']['of']:,} validation "
        "and test examples closely resemble a training example (an estimate).",
        f"- Characters per text, about: {_percentiles(now['characters'])}.",
        f"- {data_changes(now, before)}",
    ]
    return (
        "\n".join(lines)
        + "\n\n"
        + markdown_table(("label" if "labels" in now else "", *now["rows"]), table)
    )


def _label_lines(now: dict[str, Any]) -> list[str]:
    conflicts = now["conflicts"]
    dropped = sum(conflicts["rows_dropped"].values())
    return [
        f"- {conflicts['inputs']:,} inputs have more than one label; {dropped:,} of their rows "
        "were left out."
    ]


def _row_format_lines(now: dict[str, Any]) -> list[str]:
    formats = ", ".join(f"{count:,} {name}" for name, count in now["row_formats"].items())
    lines = [f"- Row formats: {formats}."]
    if now["answer_characters"]:
        lines.append(f"- {now['several_answers']['inputs']:,} inputs have several answers.")
        lines.append(f"- Characters per answer, about: {_percentiles(now['answer_characters'])}.")
    return lines


def _percentiles(lengths: dict[str, int]) -> str:
    return ", ".join(f"{name} {value:,}" for name, value in lengths.items())


def data_changes(now: dict[str, Any], before: dict[str, Any] | None) -> str:
    """In one sentence, what changed since the deployed release's data."""
    if before is None:
        return "Nothing is deployed yet to compare with."
    more = sum(now["rows"].values()) - sum(before["rows"].values())
    if "labels" not in now or "labels" not in before:
        return f"Since the deployed release: {more:+,} rows."
    new = sorted(set(now["labels"]) - set(before["labels"]))
    gone = sorted(set(before["labels"]) - set(now["labels"]))
    return (
        f"Since the deployed release: {more:+,} rows"
        + (f"; new labels: {', '.join(new)}" if new else "; no new labels")
        + (f"; removed labels: {', '.join(gone)}." if gone else "; no removed labels.")
    )


def verdict_markdown(verdict: Verdict) -> str:
    """The verdict: its summary, and how each rule turned out."""
    return f"{verdict.summary}\n\n{rules_markdown(verdict)}"


def rules_markdown(verdict: Verdict) -> str:
    """A table of a verdict's rules, and a sentence for each, folded for rules that hold."""
    table = markdown_table(
        ("", "rule", "candidate", "baseline", "difference"),
        [_rule_row(rule) for rule in verdict.rules],
    )
    broken, kept = (
        [rule.sentence for rule in verdict.rules if rule.passed == passed]
        for passed in (False, True)
    )
    parts = [table, _LEGEND, _listed(broken)]
    if kept:
        parts.append(
            folded(f"Rules that hold or were not tested, in words: {len(kept)}", _listed(kept))
        )
    return "\n\n".join(filter(None, parts))


_LEGEND = "✓ holds, ✗ does not hold, · not tested, or too few examples to tell"


def _listed(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def folded(title: str, markdown: str) -> str:
    """Markdown that is shown once its title is clicked."""
    return f"<details><summary>{title}</summary>\n\n{markdown}\n\n</details>"


def _rule_row(rule: RuleOutcome) -> tuple[str, ...]:
    mark = "✗" if not rule.passed else ("·" if rule.inconclusive else "✓")
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
    """A release's version, where it is published, and its event."""
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
