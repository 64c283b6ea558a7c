"""What people look at: the run's report, its loss curve and gate table, and training's progress.

The report is one artifact on the run's page, written from the first second and kept true.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.exceptions import FailedRun, MissingContextError

from tasks.contracts.artifact import StepResult
from tasks.contracts.release import LogEntry
from tasks.contracts.verdict import RuleOutcome, Verdict
from tasks.errors import BurnishError

SECONDS_BETWEEN_UPDATES = 2.0
SECONDS_BETWEEN_LOGS = 10.0
LEARNT, GIVEN = "▶", "·"


def run_logger() -> logging.Logger | logging.LoggerAdapter:
    """The run's logger, or an ordinary one outside of runs."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("burnish")


class _KnownCauses(logging.Filter):
    """Keeps Prefect from logging a failure whose cause is known as if it were a defect.

    The engine logs a returned `Failed` state twice, once with an empty traceback, and a deployed
    run that failed with a traceback of its own internals.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if str(record.msg).startswith("Task run failed with state"):
            return False
        if record.exc_info and isinstance(record.exc_info[1], FailedRun):
            record.exc_info = None
        return True


for _name in ("prefect.task_runs", "prefect.flow_runs", "prefect.engine"):
    logging.getLogger(_name).addFilter(_KnownCauses())


class RunReport:
    """The report of one run, as markdown for its page and as text for the terminal.

    Args:
        name: The recipe's name.
        run_id: The flow run.
        deployed: Whether the run belongs to a deployment, and so can be retried by a worker.
    """

    def __init__(self, name: str, run_id: str, deployed: bool) -> None:
        self.name, self.run_id, self.deployed = name, run_id, deployed
        self.outcome = "Running"
        self.explanation = "The run has begun."
        self.rows: list[tuple[str, str, str]] = []
        self.sections: dict[str, str] = {}
        self.facts: list[tuple[str, str]] = []
        self.warnings: list[str] = []
        self.visible = "Nothing was published."
        self.serving = "nothing is deployed yet"
        self._artifact = None

    def doing(self, what: str) -> None:
        """Say what the run is doing now."""
        self.explanation = what
        run_logger().info(what)
        self.show()

    def made(self, name: str, result: StepResult, what: str) -> None:
        """Note a step's result, and whether it was made now or reused."""
        made = result.made
        if made and made.run_id == self.run_id:
            how = f"made in {made.seconds:.1f} s"
        else:
            how = f"reused, from run {made.run_name} of {made.at}" if made else "reused"
        self.rows.append((name, how, what))
        run_logger().info("%s: %s (%s)", name, what, how)

    def section(self, title: str, markdown: str) -> None:
        """Add or replace a section."""
        self.sections[title] = markdown

    def warn(self, *sentences: str) -> None:
        """Add what a person should know, once each, however often the run is gone through."""
        for sentence in sentences:
            if sentence not in self.warnings:
                self.warnings.append(sentence)
                run_logger().warning(sentence)
        if self.warnings:
            self.section("Warnings", "\n".join(f"- {sentence}" for sentence in self.warnings))

    def fact(self, name: str, value: str) -> None:
        """Add a line to the summary."""
        self.facts.append((name, value))

    def end(self, outcome: str, explanation: str) -> None:
        """Say how the run ended."""
        self.outcome, self.explanation = outcome, explanation
        self.show()

    def fail(self, error: BurnishError) -> None:
        """Say what broke, whether anything became visible, and what to do."""
        self.section(
            "What broke",
            "\n".join(
                [
                    f"- **Cause:** {error.cause}",
                    f"- **Where:** {error.where}",
                    f"- **Found:** {error.found}",
                    f"- **Expected:** {error.expected}",
                    f"- **Fix:** {error.fix}",
                    f"- **Visible to consumers:** {self.visible} Deployed: {self.serving}.",
                    f"- **Next:** {self.next_action(error)}",
                ]
            ),
        )
        if curve := loss_curve(error.history):
            self.section("Training", f"Until it failed:\n\n{curve}")
        self.end("Failed", f"{error.cause}: {error}")

    def next_action(self, error: BurnishError) -> str:
        """What to do about a failure, with the exact command."""
        if error.in_recipe:
            return "correct the recipe and start a new run: a retry has the same recipe."
        again = (
            f"press Retry on the run's page, or run `prefect flow-run retry {self.run_id}`"
            if self.deployed
            else "start the same command again"
        )
        when = "a retry may help" if error.retry_helps else "once the cause is mended, retry"
        return f"{when}: {again}. What was finished is not done again."

    def markdown(self) -> str:
        """The report as it stands on the run's page."""
        order = [
            "What broke",
            "Warnings",
            "Gate",
            "Answers",
            "Harness",
            "Published",
            "Training",
            "What is learnt",
            "Data",
            "Forecast",
            "Plan",
        ]
        parts = [f"# {self.name}: {self.outcome}", self.explanation]
        parts.append("\n".join(f"- **{name}**: {value}" for name, value in self.facts))
        for title in sorted(self.sections, key=order.index):
            parts += [f"## {title}", self.sections[title]]
        if self.rows:
            parts += ["## Steps", markdown_table(("step", "how", "what"), self.rows)]
        return "\n\n".join(filter(None, parts)) + "\n"

    def text(self) -> str:
        """The summary for a terminal."""
        lines = [f"{self.name}: {self.outcome}. {self.explanation}", ""]
        lines += [f"  {name:<10} {what}  [{how}]" for name, how, what in self.rows]
        lines += [f"  {name:<10} {value}" for name, value in self.facts]
        return "\n".join(lines)

    def show(self) -> None:
        """Bring the artifact on the run's page up to date.

        A report that cannot be written is no reason to lose a run.
        """
        try:
            if self._artifact is None:
                self._artifact = create_markdown_artifact(
                    self.markdown(), key=f"report-{self.name}", description="The run's report"
                )
            else:
                with get_client(sync_client=True) as client:
                    client.update_artifact(self._artifact, ArtifactUpdate(data=self.markdown()))
        except Exception as error:
            run_logger().warning("the report could not be written: %s", error)


def close_report(run_id: Any, outcome: str, explanation: str) -> None:
    """Say in the report of a run that ended without a word how it ended.

    Args:
        run_id: The flow run.
        outcome: The name of its last state.
        explanation: Markdown: what happened, what is visible, what to do.
    """
    mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
    with get_client(sync_client=True) as client:
        for found in client.read_artifacts(artifact_filter=mine):
            if (found.key or "").startswith("report-"):
                heading, _, rest = str(found.data).partition("\n")
                title = f"{heading.partition(':')[0]}: {outcome}"
                text = f"{title}\n\n{explanation}\n\nBefore that: {rest.strip()}\n"
                client.update_artifact(found.id, ArtifactUpdate(data=text))


class TrainingProgress:
    """Training's progress lines, as log lines and a progress artifact.

    Attributes:
        tokens_per_second: As last said; 0 before.
    """

    def __enter__(self) -> TrainingProgress:
        self._artifact = None
        self.tokens_per_second = 0.0
        self._shown = self._logged = 0.0
        self._history: list[dict[str, float]] = []
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, *_: object
    ) -> None:
        if isinstance(failure, BurnishError):
            failure.history = self._history
        elif self._artifact is not None and failure is None:
            self._set(100.0)

    def update(self, line: dict[str, Any]) -> None:
        """Take one progress line of the training program."""
        self.tokens_per_second = line.get("tokens_per_second") or self.tokens_per_second
        if "step" in line and ("loss" in line or "eval_loss" in line):
            self._history.append(line)
        now = time.monotonic()
        sentence = progress_sentence(line)
        epoch_ended = any(name.startswith("eval_") for name in line)
        if sentence and (epoch_ended or now - self._logged > SECONDS_BETWEEN_LOGS):
            self._logged = now
            run_logger().info(sentence)
        if line.get("steps") and now - self._shown > SECONDS_BETWEEN_UPDATES:
            self._shown = now
            self._set(100.0 * line.get("step", 0) / line["steps"])

    def _set(self, percent: float) -> None:
        try:
            if self._artifact is None:
                self._artifact = create_progress_artifact(percent, description="Training")
            else:
                update_progress_artifact(self._artifact, percent)
        except Exception as error:
            run_logger().debug("the progress could not be shown: %s", error)


def progress_sentence(line: dict[str, Any]) -> str:
    """A progress line of the training program, for people; empty if it measures nothing."""
    names = {
        "loss": "loss {:.4f}",
        "learning_rate": "learning rate {:.2e}",
        "eval_loss": "validation loss {:.4f}",
        "eval_accuracy": "accuracy {:.4f}",
        "eval_f1": "F1 {:.4f}",
        "tokens_per_second": "{:.0f} tokens/s",
        "memory_mb": "{:.0f} MB",
    }
    parts = [text.format(line[name]) for name, text in names.items() if line.get(name) is not None]
    if not parts:
        return ""
    return f"step {line.get('step', 0)} of {line.get('steps', '?')}: {', '.join(parts)}"


def samples_markdown(samples: Sequence[dict[str, Any]]) -> str:
    """The first examples as the model is trained on them, with what is learnt marked.

    Args:
        samples: For each, its `segments`: a `text`, and whether it is `learnt`.
    """
    shown = []
    for sample in samples:
        lines = []
        for segment in sample["segments"]:
            mark = LEARNT if segment["learnt"] else GIVEN
            text = _shortened(segment["text"].replace("```", "'''"))
            lines += [f"{mark} {line}" for line in text.removesuffix("\n").split("\n")]
        shown.append("```text\n" + "\n".join(lines) + "\n```")
    said = f"Lines with {LEARNT} are learnt; the model only reads those with {GIVEN}."
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


def loss_curve(history: Sequence[dict[str, float]], width: int = 560, height: int = 180) -> str:
    """Training and validation loss over steps, as a markdown image that needs no network."""
    lines = {
        "#3b6fd4": [(row["step"], row["loss"]) for row in history if "loss" in row],
        "#d4623b": [(row["step"], row["eval_loss"]) for row in history if "eval_loss" in row],
    }
    points = [point for line in lines.values() for point in line]
    if len(points) < 2:
        return ""
    right = max(step for step, _ in points) or 1
    top = max(loss for _, loss in points) or 1

    def place(point: tuple[float, float]) -> str:
        x = 40 + (width - 50) * point[0] / right
        y = 10 + (height - 35) * (1 - point[1] / top)
        return f"{x:.1f},{y:.1f}"

    drawn = "".join(
        f'<polyline fill="none" stroke="{color}" stroke-width="2" '
        f'points="{" ".join(place(point) for point in line)}"/>'
        for color, line in lines.items()
    )
    # An epoch's loss is one point, and one point is no line.
    drawn += "".join(
        f'<circle cx="{x}" cy="{y}" r="4" fill="#d4623b"/>'
        for x, y in (place(point).split(",") for point in lines["#d4623b"])
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f"{drawn}"
        f'<text x="4" y="16">{top:.2f}</text><text x="4" y="{height - 25}">0</text>'
        f'<text x="{width - 60}" y="{height - 6}">step {right:.0f}</text>'
        f'<text x="40" y="{height - 6}" fill="#3b6fd4">training loss</text>'
        f'<text x="140" y="{height - 6}" fill="#d4623b">validation loss</text></svg>'
    )
    return f"![loss](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"
