"""The run report: one artifact on the run's page, written from the start and kept current."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact

from tasks.contracts.errors import BurnishError
from tasks.contracts.results import StepResult
from tasks.report.loss_curve import loss_curve
from tasks.report.markdown import folded, markdown_table
from tasks.runtime.logs import NOW, STEP, WARNING, KnownCauses, run_logger
from tasks.runtime.prefect_api import BackgroundCall, brief_client

for _name in ("prefect.task_runs", "prefect.flow_runs", "prefect.engine"):
    logging.getLogger(_name).addFilter(KnownCauses())


FINISHED_STEPS = (
    "Finished steps are not repeated, and a training goes on from its newest checkpoint."
)
_LINK, _PLAIN_LINK = re.compile(r"\[(.+?)\]\((.+?)\)"), r"\1 (\2)"
_NO_KEY = re.compile(r"[^a-z0-9]+")
_RUNNING = "Running"
WAITING = "Waiting for approval"
_DESCRIPTION_LETTERS = 200
_LAST_WRITE_SECONDS = 30.0


@dataclass(frozen=True)
class Origin:
    """Where what a run releases is recorded: kept with its report, for whoever must complete it.

    Attributes:
        store: The store's URI.
        model, channel: The log in it.
    """

    store: str
    model: str
    channel: str


class Section(StrEnum):
    """The report's sections, in the order in which they are shown."""

    WHAT_BROKE = "What broke"
    WHAT_HAPPENED = "What happened"
    RUNBOOK = "Runbook"
    WARNINGS = "Warnings"
    GATE = "Gate"
    ANSWERS = "Answers"
    BENCHMARKS = "Benchmarks"
    STEPS = "Steps"
    TRAINING = "Training"
    TRAINING_EXAMPLES = "Training examples"
    DATA = "Data"
    FORECAST = "Forecast"
    PLAN = "Plan"
    RECIPE = "Recipe"


FOLDED = frozenset(
    {
        Section.ANSWERS,
        Section.BENCHMARKS,
        Section.TRAINING_EXAMPLES,
        Section.DATA,
        Section.FORECAST,
        Section.PLAN,
        Section.RECIPE,
    }
)
"""What explains a run, but does not say how it ended."""


class RunReport:
    """The report of one run, as markdown for its page and as text for the terminal.

    Args:
        name: The recipe's name.
        run_id: The flow run.
        deployed: Whether the run belongs to a deployment, and so can be retried by a worker.
        asked_by: The run that asked for this one, if there is one: results are recorded under it,
            and it is what is retried.
        origin: Where its release is recorded; None if it releases nothing.

    Attributes:
        writing: Writes the page in the background.
    """

    def __init__(
        self,
        name: str,
        run_id: str,
        deployed: bool,
        asked_by: str = "",
        origin: Origin | None = None,
    ) -> None:
        self.name, self.run_id, self.deployed = name, run_id, deployed
        self._asked_by, self._origin = asked_by, origin
        self.outcome = _RUNNING
        self.explanation = "The run has started."
        self.rows: list[tuple[str, str, str]] = []
        self.sections: dict[Section, str] = {}
        self.facts: list[tuple[str, str]] = []
        self.warnings: list[str] = []
        self._artifact: UUID | None = None
        self.writing = BackgroundCall()

    def status(self, what: str) -> None:
        """Set what the run is doing now."""
        self.explanation = what
        run_logger().info(what, extra=NOW)
        self.show()

    def training(self, sentence: str, history: Sequence[dict[str, float]]) -> None:
        """Set how far the training is, with its loss curve so far."""
        self.explanation = sentence
        if curve := loss_curve(history):
            self.section(Section.TRAINING, curve)
        self.show()

    def add_step(self, name: str, result: StepResult, what: str) -> None:
        """Add a step's result, and whether this run produced or reused it."""
        provenance = result.provenance
        if provenance is None:
            how = "reused"
        elif provenance.run_id == (self._asked_by or self.run_id):
            how = f"done in {provenance.seconds:.1f} s"
        else:
            how = f"reused from run {provenance.run_name}, {provenance.at}"
        self.rows.append((name, how, what))
        run_logger().info("%s: %s (%s)", name, what, how, extra=STEP)

    def section(self, section: Section, markdown: str) -> None:
        """Add or replace a section.

        Raises:
            ValueError: It is no member of `Section`, so it has no place in the order.
        """
        self.sections[Section(section)] = markdown

    def warn(self, *sentences: str) -> None:
        """Add warnings, each only once even if the run makes several passes."""
        for sentence in sentences:
            if sentence not in self.warnings:
                self.warnings.append(sentence)
                run_logger().warning(sentence, extra=WARNING)
        if self.warnings:
            self.section(Section.WARNINGS, "\n".join(f"- {sentence}" for sentence in self.warnings))

    def add_fact(self, name: str, value: str) -> None:
        """Add a line to the summary."""
        self.facts.append((name, value))

    def end(self, outcome: str, explanation: str) -> None:
        """Set how the run ended, and wait until the page says so."""
        self.outcome, self.explanation = outcome, explanation
        self.show()
        self.writing.flush(_LAST_WRITE_SECONDS)

    def resume(self) -> None:
        """Set that the run goes on, after an end that was none."""
        self.outcome = _RUNNING

    def fail(self, error: BurnishError, visible: str) -> None:
        """Report a failure: its cause, what is visible to consumers, and what to do.

        Args:
            error: The cause.
            visible: What consumers see now, as sentences.
        """
        self.section(
            Section.WHAT_BROKE,
            "\n".join(
                [
                    f"- **Cause:** {error.cause}",
                    f"- **Where:** {error.where}",
                    f"- **Found:** {error.found}",
                    f"- **Expected:** {error.expected}",
                    f"- **Fix:** {error.fix}",
                    f"- **Visible to consumers:** {visible}",
                    *([f"- **Kept:** {error.kept}"] if error.kept else []),
                    f"- **Next:** {self.next_action(error)}",
                ]
            ),
        )
        if curve := loss_curve(error.history):
            self.section(Section.TRAINING, f"Until the failure:\n\n{curve}")
        self.end("Failed", f"{error.cause}: {error}")

    def stop(
        self, outcome: str, cause: str, explanation: str, visible: str, kept: str = ""
    ) -> None:
        """Report that the run was asked to stop, and how to go on.

        Args:
            outcome: The kind of the run's last state.
            cause: In a word.
            explanation: The same as a sentence.
            visible: What consumers see now, as sentences.
            kept: How far a training got, and where the next run goes on, as a sentence.
        """
        self.section(
            Section.WHAT_HAPPENED,
            f"- **Cause:** {cause}\n"
            f"- **Visible to consumers:** {visible}\n"
            + (f"- **Kept:** {kept}\n" if kept else "")
            + f"- **Next:** to go on, {self._retry()}. {FINISHED_STEPS}",
        )
        self.end(outcome, explanation)

    def next_action(self, error: BurnishError) -> str:
        """What to do after a failure, with the exact command."""
        if error.in_request:
            return "start a new run with other values: a retry has the same ones."
        if error.in_recipe:
            return (
                f"correct the recipe, then retry: {self._retry()}. A retry reads the recipe again; "
                "it keeps what was filled into the form, which needs a new run."
            )
        when = "a retry may help" if error.retry_helps else "fix the cause, then retry"
        return f"{when}: {self._retry()}. {FINISHED_STEPS}"

    def _retry(self) -> str:
        if self._asked_by:
            asked_by = self._asked_by
            return f"retry the run that asked for this one: `prefect flow-run retry {asked_by}`"
        if not self.deployed:
            return "start the same command again"
        return f"press Retry on the run's page, or run `prefect flow-run retry {self.run_id}`"

    def markdown(self) -> str:
        """The report for the run's page."""
        parts = [f"# {self.name}: {self.outcome}", self.explanation]
        parts.append("\n".join(f"- **{name}**: {value}" for name, value in self.facts))
        sections = dict(self.sections)
        if self.rows:
            sections[Section.STEPS] = markdown_table(("step", "how", "what"), self.rows)
        for section in Section:
            if section in sections:
                shown = sections[section]
                parts += [folded(section, shown)] if section in FOLDED else [f"## {section}", shown]
        return "\n\n".join(filter(None, parts)) + "\n"

    def text(self) -> str:
        """The report for a terminal."""
        lines = [f"{self.name}: {self.outcome}. {self.explanation}", ""]
        lines += [f"  {name:<10} {what}  [{how}]" for name, how, what in self.rows]
        lines += [f"  {name:<10} {_LINK.sub(_PLAIN_LINK, value)}" for name, value in self.facts]
        return "\n".join(lines)

    def show(self) -> None:
        """Update the artifact on the run's page, without waiting. A run does not fail because its
        report cannot be written.
        """
        text, description = self.markdown(), _description(self.name, self.outcome, self.explanation)
        self.writing.submit(lambda: self._write(text, description))

    def _write(self, text: str, description: str) -> None:
        try:
            with brief_client() as client:
                if self._artifact is None:
                    # Of a run that has waited, and was resumed in this process.
                    self._artifact = _waiting_report(client, UUID(self.run_id))
                if self._artifact is None:
                    self._artifact = _create(
                        client, UUID(self.run_id), self.name, text, description, self._origin
                    )
                else:
                    change = ArtifactUpdate(data=text, description=description)
                    client.update_artifact(self._artifact, change)
        except Exception as error:
            run_logger().warning("could not write the report: %s", error)


def close_report(
    run_id: UUID, name: str, outcome: str, explain: Callable[[Origin | None], str]
) -> None:
    """Complete the report of a run that ended without reporting it, such as one that was killed.

    Args:
        run_id: The flow run.
        name: What it retrained, if it was killed before it wrote a report.
        outcome: The name of its last state.
        explain: Given where its release would be recorded (None if it never said so), what
            happened, what is visible, and what to do, as markdown.
    """
    with brief_client() as client:
        reports = _reports(client, run_id)
        if not reports:
            text = f"# {name}: {outcome}\n\n{explain(None)}\n"
            _create(client, run_id, name, text, _description(name, outcome, ""), None)
        for found in reports:
            told, before, rest = _headed(found)
            if before in (_RUNNING, WAITING):
                origin = Origin(**found.metadata_) if found.metadata_ else None
                text = f"# {told}: {outcome}\n\n{explain(origin)}\n\nBefore: {rest.strip()}\n"
                description = _description(told, outcome, "")
                client.update_artifact(found.id, ArtifactUpdate(data=text, description=description))


def _reports(client: SyncPrefectClient, run_id: UUID) -> list[Artifact]:
    mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
    artifacts = client.read_artifacts(artifact_filter=mine)
    return [found for found in artifacts if (found.key or "").startswith("report-")]


def _headed(report: Artifact) -> tuple[str, str, str]:
    """A report's name, its outcome, and what follows."""
    heading, _, rest = str(report.data).partition("\n")
    name, _, outcome = heading.removeprefix("# ").rpartition(": ")
    return name, outcome, rest


def _waiting_report(client: SyncPrefectClient, run_id: UUID) -> UUID | None:
    waiting = (each.id for each in _reports(client, run_id) if _headed(each)[1] == WAITING)
    return next(waiting, None)


def _create(
    client: SyncPrefectClient,
    run_id: UUID,
    name: str,
    text: str,
    description: str,
    origin: Origin | None,
) -> UUID:
    return client.create_artifact(
        ArtifactCreate(
            key=f"report-{_NO_KEY.sub('-', name.lower())}",
            type="markdown",
            description=description,
            data=text,
            metadata_=asdict(origin) if origin else None,
            flow_run_id=run_id,
        )
    ).id


def _description(name: str, outcome: str, explanation: str) -> str:
    """What lists of artifacts show: `news · Released. Version fae2adc5779d is deployed.`"""
    words = " ".join(filter(None, [f"{name} · {outcome}.", explanation]))
    return words if len(words) <= _DESCRIPTION_LETTERS else f"{words[: _DESCRIPTION_LETTERS - 1]}…"
