"""Judging: is the candidate good enough to replace what is deployed?

Both models have answered the same test examples, one by one. `judge` turns these answers and the
recipe's rules into a verdict, as a pure function: no clock, no network, no random state that does
not come from the data. Read it from the top: what the evidence is, `judge`, then one section a
rule. Exactly one rule, the claim, carries the error rate; the others ask for a minimum or stop
clear harm. Whatever is missing or not a number rejects, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from sklearn.metrics import precision_recall_fscore_support

from tasks.contracts.recipe import GateRecipe
from tasks.contracts.verdict import RuleOutcome, Verdict
from tasks.errors import BadData
from tasks.judging import paired

NO_BASELINE = "none"
UNTRAINED = "untrained base"
POWER = 0.8
# Where no pair is discordant, what a test set can show is worked out for this share.
STATED_DISCORDANCE = 0.05
# A slice that would probably miss even so large a loss is too small to tell.
TELLING_LOSS = 0.2
LENGTHS = ("short", "medium", "long")
COLUMNS = ("hash_hi", "hash_lo", "label", "predicted", "correct", "loss", "length")
METRIC_NAMES = {
    "accuracy": "accuracy",
    "precision": "macro precision",
    "recall": "macro recall",
    "f1": "macro F1",
}


@dataclass(frozen=True)
class Evidence:
    """What is known of the two models.

    Attributes:
        candidate: Its answers, with the columns that `contracts.artifact.Scored` lists.
        baseline: The baseline's answers on the same examples; None where there is no baseline. Its
            `loss` counts only on examples whose label it knows.
        candidate_labels: The labels that the candidate can answer.
        baseline_labels: The labels that the baseline can answer; None where there is no baseline.
        candidate_seen: Hashes of the inputs it was trained and validated on, uint64, shape (n, 2),
            pairs (hash_hi, hash_lo); None where that is unknown.
        baseline_seen: The same for the baseline.
        latency_ms: The candidate's milliseconds per example; None where it was not measured.
        size_bytes: Size of the candidate's files.
    """

    candidate: pa.Table
    baseline: pa.Table | None
    candidate_labels: tuple[str, ...]
    baseline_labels: tuple[str, ...] | None
    candidate_seen: np.ndarray | None
    baseline_seen: np.ndarray | None
    latency_ms: float | None
    size_bytes: int


def judge(
    evidence: Evidence,
    rules: GateRecipe,
    slices: tuple[str, ...],
    *,
    candidate_digest: str,
    baseline: str,
    baseline_digest: str,
    baseline_entry: int,
    test_digest: str,
    look_number: int,
) -> Verdict:
    """Decide whether the candidate may replace the baseline.

    Examples that either model has seen in training are left out. The claim and the slices compare
    the models on examples whose label the baseline knows; the floors look at all examples; each
    label that is new to the baseline has a floor of its own. Against the untrained base model the
    claim is always "better" and slices do not veto. Without a baseline the floors decide alone.

    Args:
        evidence: Both models' answers, and the candidate's latency and size.
        rules: The recipe's `gate`.
        slices: The recipe's `evaluation.slices`: `label`, `length`, or string columns.
        candidate_digest: Digest of the candidate's artifact.
        baseline: A release's version, a model's name, `untrained base` or `none`.
        baseline_digest: Digest of the baseline's artifact; empty where there is none.
        baseline_entry: Number of the log entry that deployed the baseline; 0 where there is none.
        test_digest: The test set's identity.
        look_number: How many verdicts the test set has served, this one included.

    Returns:
        The verdict. Evidence that is incomplete, contradictory or not a number never raises: it
        rejects, by rules of kind `error`.
    """
    outcomes, examples, dropped = _apply(evidence, rules, slices, baseline)
    promoted = all(rule.passed or not rule.vetoes for rule in outcomes)
    return Verdict(
        outcome="promoted" if promoted else "rejected",
        rules=tuple(outcomes),
        candidate_digest=candidate_digest,
        baseline=baseline,
        baseline_digest=baseline_digest,
        baseline_entry=baseline_entry,
        test_digest=test_digest,
        look_number=look_number,
        examples=examples,
        dropped=dropped,
        baseline_seen=_what_is_known(evidence, baseline),
        summary=_summary(promoted, outcomes, examples, baseline, look_number),
    )


def _apply(
    evidence: Evidence, rules: GateRecipe, slices: tuple[str, ...], baseline: str
) -> tuple[list[RuleOutcome], int, int]:
    """All rules' outcomes, the examples that were compared, and those that were left out."""
    if problems := _problems(evidence, rules, slices, baseline):
        return [_error(problem) for problem in problems], 0, 0
    every = _join(evidence, slices)
    kept = every.where(~every.seen)
    dropped = len(every) - len(kept)
    if not len(kept):
        reason = f"All {_count(dropped, 'test example')} had been seen in training."
        return [_error(reason)], 0, dropped
    if evidence.baseline is None:
        alone = [
            _enough(kept, dropped, evidence, rules),
            *_floors(kept, rules),
            *_budgets(evidence, rules),
        ]
        return alone, len(kept), dropped
    known = kept.where(np.isin(kept.truth, evidence.baseline_labels))
    if not len(known):
        reason = "No test example that counts has a label that the baseline knows."
        return [_error(reason)], 0, dropped
    compared = [
        _enough(known, dropped, evidence, rules),
        _claim(known, rules, baseline),
        *_floors(kept, rules),
        *_new_labels(every, kept, evidence, rules),
        *_budgets(evidence, rules),
        *_no_harm(every, known, evidence, rules, slices, baseline),
    ]
    return compared, len(known), dropped


# The evidence, checked and joined


@dataclass(frozen=True)
class _Answers:
    """Both models' answers, row by row, in the order of the examples' hashes.

    Attributes:
        truth, candidate, baseline: Labels, strings; the baseline's equal the candidate's where
            there is no baseline.
        seen: Whether a model had seen the example in training.
        slicing: The values of each slicing column.
    """

    truth: np.ndarray
    candidate: np.ndarray
    baseline: np.ndarray
    seen: np.ndarray
    slicing: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.truth)

    def where(self, rows: np.ndarray) -> _Answers:
        return _Answers(
            self.truth[rows],
            self.candidate[rows],
            self.baseline[rows],
            self.seen[rows],
            {name: values[rows] for name, values in self.slicing.items()},
        )

    @property
    def candidate_right(self) -> np.ndarray:
        return self.candidate == self.truth

    @property
    def baseline_right(self) -> np.ndarray:
        return self.baseline == self.truth

    @property
    def discordant(self) -> tuple[int, int]:
        return paired.discordant_pairs(self.candidate_right, self.baseline_right)


def _join(evidence: Evidence, slices: tuple[str, ...]) -> _Answers:
    ours = _sorted(evidence.candidate)
    theirs = ours if evidence.baseline is None else _sorted(evidence.baseline)
    keys = _keys(ours)
    return _Answers(
        truth=_values(ours, "label"),
        candidate=_values(ours, "predicted"),
        baseline=_values(theirs, "predicted"),
        seen=_contains(evidence.candidate_seen, keys) | _contains(evidence.baseline_seen, keys),
        slicing={name: _values(ours, name) for name in slices},
    )


def _problems(
    evidence: Evidence, rules: GateRecipe, slices: tuple[str, ...], baseline: str
) -> list[str]:
    """Why the evidence cannot be judged, in sentences; empty where it can."""
    if (baseline == NO_BASELINE) != (evidence.baseline is None):
        return [_mismatched_baseline(baseline)]
    if evidence.baseline is None and not rules.floors:
        return ["There is no baseline and no floor, so nothing would be asked of the candidate."]
    if evidence.baseline is not None and not evidence.baseline_labels:
        return ["It is not known which labels the baseline can answer."]
    found = list(_table_problems("candidate", evidence.candidate, None, slices))
    if evidence.baseline is not None:
        known = evidence.baseline_labels
        found += _table_problems("baseline", evidence.baseline, known, ())
    for name, seen in (
        ("candidate", evidence.candidate_seen),
        ("baseline", evidence.baseline_seen),
    ):
        if seen is not None and (seen.dtype != np.uint64 or seen.ndim != 2 or seen.shape[1] != 2):
            found.append(f"The list of what the {name} has seen is not made of pairs of hashes.")
    return found or list(_contradictions(evidence))


def _mismatched_baseline(baseline: str) -> str:
    if baseline == NO_BASELINE:
        return "The verdict was asked for without a baseline, but there are answers of one."
    return f"The answers of the baseline ({baseline}) are missing."


def _table_problems(
    model: str, table: pa.Table, known: tuple[str, ...] | None, slices: tuple[str, ...]
) -> Iterator[str]:
    """What is wrong with one model's answers; the first problem hides those that follow from it.

    Args:
        model: `candidate` or `baseline`.
        table: Its answers.
        known: The labels on which a loss is asked for; None for all.
        slices: Columns that must be there, too.
    """
    wanted = dict.fromkeys((*COLUMNS, *slices))
    if missing := [name for name in wanted if table.column_names.count(name) != 1]:
        yield f"The {model}'s answers lack a column each for {_list(missing)}."
    elif wrong := [name for name in wanted if not _fits(name, table.schema.field(name).type)]:
        yield f"The {model}'s answers have columns of the wrong type: {_list(wrong)}."
    elif not table.num_rows:
        yield f"The {model} has no answers: the test set is empty."
    elif empty := [name for name in COLUMNS if name != "loss" and table.column(name).null_count]:
        yield f"The {model}'s answers have empty values in {_list(empty)}."
    else:
        yield from _value_problems(model, table, known, slices)


def _value_problems(
    model: str, table: pa.Table, known: tuple[str, ...] | None, slices: tuple[str, ...]
) -> Iterator[str]:
    keys, truth, losses = _keys(table), _values(table, "label"), _values(table, "loss")
    counted = np.ones(len(truth), bool) if known is None else np.isin(truth, known)
    if twice := len(keys) - len(np.unique(keys, axis=0)):
        yield f"The {model} has more than one answer to {_count(twice, 'test example')}."
    if bad := int((~np.isfinite(losses[counted])).sum()):
        yield f"The {model}'s loss is not a finite number on {_count(bad, 'test example')}."
    elif counted.any() and not math.isfinite(_mean(losses[counted])):
        yield f"The {model}'s mean loss is not a finite number."
    if (_values(table, "correct") != (truth == _values(table, "predicted"))).any():
        yield f"The {model}'s answers contradict their own count of right ones."
    for name in slices:
        if table.column(name).null_count == table.num_rows:
            yield f"The slicing column {name} is empty."


def _contradictions(evidence: Evidence) -> Iterator[str]:
    """What is wrong with answers that are well-formed, one table beside the other."""
    answers = set(_values(evidence.candidate, "predicted").tolist())
    if strange := sorted(answers - set(evidence.candidate_labels)):
        yield f"The candidate answered with labels that it should not know: {_list(strange)}."
    if evidence.baseline is None:
        return
    ours, theirs = _sorted(evidence.candidate), _sorted(evidence.baseline)
    if missing := int((~_contains(_keys(theirs), _keys(ours))).sum()):
        yield f"The baseline has no answer to {_count(missing, 'test example')}."
    if missing := int((~_contains(_keys(ours), _keys(theirs))).sum()):
        yield f"The candidate has no answer to {_count(missing, 'test example')}."
    elif (
        ours.num_rows == theirs.num_rows
        and (_values(ours, "label") != _values(theirs, "label")).any()
    ):
        yield "Candidate and baseline were scored against different labels."


def _fits(name: str, kind: pa.DataType) -> bool:
    if name in ("hash_hi", "hash_lo"):
        return pa.types.is_uint64(kind)
    if name == "correct":
        return pa.types.is_boolean(kind)
    if name == "loss":
        return pa.types.is_floating(kind)
    if name == "length":
        return pa.types.is_integer(kind)
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _values(table: pa.Table, name: str) -> np.ndarray:
    """A column as an array; strings as objects, so that comparing never cuts them short."""
    column = table.column(name)
    if name in COLUMNS and name not in ("label", "predicted"):
        return column.to_numpy()
    return np.array(
        ["(none)" if value is None else value for value in column.to_pylist()], dtype=object
    )


def _keys(table: pa.Table) -> np.ndarray:
    return np.stack([_values(table, "hash_hi"), _values(table, "hash_lo")], axis=1)


def _sorted(table: pa.Table) -> pa.Table:
    return table.sort_by([("hash_hi", "ascending"), ("hash_lo", "ascending")])


def _contains(seen: np.ndarray | None, keys: np.ndarray) -> np.ndarray:
    """For each key, whether it is among those seen; none is, where nothing is known."""
    if seen is None:
        return np.zeros(len(keys), bool)
    # Training sets are large and few of their hashes share a first half with the test set's.
    near = set(map(tuple, seen[np.isin(seen[:, 0], keys[:, 0])].tolist()))
    return np.array([tuple(key) in near for key in keys.tolist()], bool)


def _what_is_known(evidence: Evidence, baseline: str) -> Literal["known", "unknown", "no baseline"]:
    if baseline == NO_BASELINE:
        return "no baseline"
    return "unknown" if evidence.baseline_seen is None else "known"


# Enough examples


def _enough(answers: _Answers, dropped: int, evidence: Evidence, rules: GateRecipe) -> RuleOutcome:
    passed = len(answers) >= rules.min_examples
    words = [
        f"{_count(len(answers), 'test example')} {'counts' if len(answers) == 1 else 'count'}",
        f"at least {rules.min_examples} {'is' if rules.min_examples == 1 else 'are'} asked for",
    ]
    sentence = (", and " if passed else ", but ").join(words) + "."
    if dropped:
        were = "was" if dropped == 1 else "were"
        sentence += f" {dropped} {were} left out because a model had seen them in training."
    unknown = [
        name
        for name, seen, there in (
            ("candidate", evidence.candidate_seen, True),
            ("baseline", evidence.baseline_seen, evidence.baseline is not None),
        )
        if there and seen is None
    ]
    if unknown:
        sentence += (
            f" What the {' and the '.join(unknown)} had seen is not known: examples from it may "
            "be among them."
        )
    return RuleOutcome(
        rule="enough examples",
        name=f"at least {_count(rules.min_examples, 'test example')}",
        metric="examples",
        examples=len(answers),
        passed=passed,
        sentence=sentence,
    )


# The claim


def _claim(known: _Answers, rules: GateRecipe, baseline: str) -> RuleOutcome:
    """The one rule that carries the error rate: its p-value must be at most 1 - confidence.

    The interval is the one that belongs to the one-sided test: 90% for a confidence of 95%.
    """
    better = rules.claim == "better" or baseline == UNTRAINED
    margin = 0.0 if better else rules.margin
    compare = _compare_accuracy if rules.metric == "accuracy" else _compare_by_bootstrap
    seen, detectable = compare(known, rules, margin)
    passed = seen.p_value <= _alpha(rules)
    opponent = f"the {'untrained base model' if baseline == UNTRAINED else 'baseline'}"
    claim = f"better than {opponent}"
    if not better:
        claim = f"not worse than {opponent} by more than {margin:g}"
    outcome = RuleOutcome(
        rule="better" if better else "not worse",
        name=f"{METRIC_NAMES[rules.metric]} {claim}",
        metric=rules.metric,
        candidate=seen.candidate,
        baseline=seen.baseline,
        difference=seen.difference,
        interval=seen.interval,
        p_value=seen.p_value,
        examples=len(known),
        discordant=known.discordant,
        detectable=detectable,
        passed=passed,
        sentence="",
    )
    return _saying(outcome, _claim_sentence(outcome, rules, margin, opponent))


def _compare_accuracy(
    known: _Answers, rules: GateRecipe, margin: float
) -> tuple[paired.Comparison, float | None]:
    n, (gained, lost) = len(known), known.discordant
    if margin:
        p_value = paired.noninferiority_p(gained, lost, n, margin)
    else:
        p_value = paired.superiority_p(gained, lost)
    comparison = paired.Comparison(
        candidate=_mean(known.candidate_right),
        baseline=_mean(known.baseline_right),
        difference=(gained - lost) / n,
        interval=paired.difference_interval(gained, lost, n, _two_sided(rules)),
        p_value=p_value,
        standard_error=math.sqrt(gained + lost) / n,
    )
    return comparison, paired.detectable_gain(n, _discordance(known), _alpha(rules), POWER)


def _compare_by_bootstrap(
    known: _Answers, rules: GateRecipe, margin: float
) -> tuple[paired.Comparison, float | None]:
    comparison = paired.bootstrap_difference(
        known.truth,
        known.candidate,
        known.baseline,
        rules.metric,
        null=-margin,
        confidence=_two_sided(rules),
    )
    return comparison, paired.detectable_by_error(comparison.standard_error, _alpha(rules), POWER)


def _claim_sentence(outcome: RuleOutcome, rules: GateRecipe, margin: float, opponent: str) -> str:
    low, high = outcome.interval
    gained, lost = outcome.discordant
    against = f"{_number(outcome.candidate)} against {_number(outcome.baseline)} for {opponent}"
    evidence = (
        f"difference {_signed(outcome.difference)}, {_two_sided(rules) * 100:g}% interval "
        f"{_signed(low)} to {_signed(high)}, {_p_value(outcome.p_value)}, "
        f"{_count(outcome.examples, 'example')}, {gained} gained and {lost} lost"
    )
    if not outcome.passed:
        evidence += f"; a p-value of at most {_alpha(rules):g} is asked for"
    metric = METRIC_NAMES[rules.metric]
    sentence = f"{metric[0].upper()}{metric[1:]} is {against}: {_finding(outcome, margin)}"
    return f"{sentence} ({evidence}). {_reach(outcome, rules, margin)}"


def _finding(outcome: RuleOutcome, margin: float) -> str:
    if outcome.rule == "better":
        return "better, beyond chance" if outcome.passed else "not shown to be better"
    if outcome.passed:
        return f"not worse by more than {margin:g}"
    return f"a loss of more than {margin:g} cannot be ruled out"


def _reach(outcome: RuleOutcome, rules: GateRecipe, margin: float) -> str:
    """What the test set could have shown at all."""
    needed = paired.least_examples(margin, _alpha(rules)) if margin else 0
    if not outcome.passed and outcome.examples < needed:
        return (
            f"With {_count(outcome.examples, 'example')} not even two models that always agree "
            f"could show it: that takes {needed}, or a wider margin."
        )
    if outcome.detectable is None:
        return "This test set is too small to show any gain."
    return (
        f"This test set would have shown a gain of {_number(outcome.detectable)} with "
        f"{POWER * 100:g}% probability."
    )


# Floors


def _floors(kept: _Answers, rules: GateRecipe) -> list[RuleOutcome]:
    return [_floor(kept, metric, floor, rules) for metric, floor in sorted(rules.floors.items())]


def _floor(kept: _Answers, metric: paired.Metric, floor: float, rules: GateRecipe) -> RuleOutcome:
    value = _metrics(kept.truth, kept.candidate)[metric]
    if metric == "accuracy":
        right = int(kept.candidate_right.sum())
        interval = paired.wilson_interval(right, len(kept), rules.confidence)
    else:
        interval = paired.bootstrap_interval(kept.truth, kept.candidate, metric, rules.confidence)
    name = METRIC_NAMES[metric]
    return _floor_outcome(metric, name, "", value, floor, interval, len(kept), rules)


def _new_labels(
    every: _Answers, kept: _Answers, evidence: Evidence, rules: GateRecipe
) -> list[RuleOutcome]:
    """A floor on the recall of each label that the baseline never knew."""
    labels = {*evidence.candidate_labels, *every.truth.tolist()}
    return [
        _new_label(kept.where(kept.truth == label), label, rules)
        for label in sorted(labels - set(evidence.baseline_labels))
    ]


def _new_label(answers: _Answers, label: str, rules: GateRecipe) -> RuleOutcome:
    floor, right = rules.new_label_floor, int(answers.candidate_right.sum())
    if len(answers):
        recall = right / len(answers)
        interval = paired.wilson_interval(right, len(answers), rules.confidence)
        name = f"recall on the new label {label}"
        return _floor_outcome(
            "recall", name, f"label={label}", recall, floor, interval, len(answers), rules
        )
    return RuleOutcome(
        rule="floor",
        name=f"recall on the new label {label} at least {floor:g}",
        metric="recall",
        slice=f"label={label}",
        passed=floor == 0,
        sentence=f"No test example that counts has the new label {label}, so nothing shows that "
        "the candidate has learnt it. Add examples of it, or set gate.new_label_floor to 0.",
    )


def _floor_outcome(
    metric: str,
    name: str,
    slice_: str,
    value: float,
    floor: float,
    interval: paired.Interval,
    examples: int,
    rules: GateRecipe,
) -> RuleOutcome:
    passed = value >= floor - 1e-12
    shown, limit = _apart(value, floor)
    low, high = map(_number, interval)
    return RuleOutcome(
        rule="floor",
        name=f"{name} at least {floor:g}",
        metric=metric,
        slice=slice_,
        candidate=value,
        interval=interval,
        examples=examples,
        passed=passed,
        sentence=f"{name[0].upper()}{name[1:]} is {shown}, {'at least' if passed else 'below'} the "
        f"floor of {limit} ({rules.confidence * 100:g}% interval {low} to {high}, "
        f"{_count(examples, 'example')}).",
    )


# Budgets


def _budgets(evidence: Evidence, rules: GateRecipe) -> Iterator[RuleOutcome]:
    if rules.max_latency_ms is not None:
        latency = evidence.latency_ms
        yield _budget("latency", "latency_ms", "ms per example", latency, rules.max_latency_ms)
    if rules.max_size_mb is not None:
        size = evidence.size_bytes / 1e6
        yield _budget("size", "size_mb", "MB", size, rules.max_size_mb)


def _budget(name: str, metric: str, unit: str, value: float | None, limit: float) -> RuleOutcome:
    measured = value is not None and math.isfinite(value) and value > 0
    passed = measured and value <= limit
    sentence = f"The {name} was not measured, so the budget of {limit:g} {unit} is not kept."
    if measured:
        shown, allowed = _apart(value, limit, digits=1)
        relation = "within" if passed else "above"
        sentence = f"The {name} is {shown} {unit}, {relation} the budget of {allowed} {unit}."
    return RuleOutcome(
        rule="budget",
        name=f"{name} at most {limit:g} {unit}",
        metric=metric,
        candidate=value if measured else None,
        passed=passed,
        sentence=sentence,
    )


# Slices


@dataclass(frozen=True)
class _Slice:
    name: str
    words: str
    rows: np.ndarray


def _no_harm(
    every: _Answers,
    known: _Answers,
    evidence: Evidence,
    rules: GateRecipe,
    slices: tuple[str, ...],
    baseline: str,
) -> list[RuleOutcome]:
    """One outcome a slice. Only significant harm vetoes, corrected for the number of slices."""
    may_veto = rules.slice_veto and baseline != UNTRAINED
    parts = [part for name in slices for part in _parts(name, known.slicing[name])]
    harms = [paired.superiority_p(*reversed(known.where(part.rows).discordant)) for part in parts]
    outcomes = [
        _slice_outcome(known, part, p_value, rules, may_veto, len(parts))
        for part, p_value in zip(parts, paired.holm(harms).tolist(), strict=True)
    ]
    before = every.where(np.isin(every.truth, evidence.baseline_labels))
    for name in slices:
        outcomes += _emptied(name, before, known, may_veto)
    if "label" in slices:
        shared = set(evidence.candidate_labels) & set(evidence.baseline_labels)
        outcomes += [_never_tested(label) for label in sorted(shared - set(before.truth.tolist()))]
    return outcomes


def _parts(name: str, values: np.ndarray) -> list[_Slice]:
    """Cut rows into slices: by token length at the terciles, else by value."""
    if name != "length":
        return [
            _Slice(f"{name}={value}", f"{name} {value}", values == value)
            for value in sorted(set(values.tolist()))
        ]
    if not len(values):
        return []
    first, second = np.floor(np.quantile(values, [1 / 3, 2 / 3])).tolist()
    ranges = (
        f"up to {first:g} tokens",
        f"above {first:g}, up to {second:g} tokens",
        f"above {second:g} tokens",
    )
    rows = (values <= first, (values > first) & (values <= second), values > second)
    return [
        _Slice(f"length={size}", f"{size} texts ({words})", chosen)
        for size, words, chosen in zip(LENGTHS, ranges, rows, strict=True)
        if chosen.any()
    ]


def _slice_outcome(
    known: _Answers, part: _Slice, p_value: float, rules: GateRecipe, may_veto: bool, family: int
) -> RuleOutcome:
    answers = known.where(part.rows)
    gained, lost = answers.discordant
    n, harmed = len(answers), p_value <= _alpha(rules)
    # The first step of Holm's procedure: what a slice must reach when it alone is harmed.
    loss = paired.detectable_gain(n, _discordance(known), _alpha(rules) / family, POWER)
    tells = harmed or (loss is not None and loss <= TELLING_LOSS)
    outcome = RuleOutcome(
        rule="no harm",
        name=f"no harm to {part.words}",
        metric="accuracy",
        slice=part.name,
        candidate=_mean(answers.candidate_right),
        baseline=_mean(answers.baseline_right),
        difference=(gained - lost) / n,
        interval=paired.difference_interval(gained, lost, n, _two_sided(rules)),
        p_value=p_value,
        examples=n,
        discordant=(gained, lost),
        detectable=loss,
        passed=not harmed,
        vetoes=may_veto and tells,
        sentence="",
    )
    return _saying(outcome, _slice_sentence(outcome, part, harmed, tells, may_veto))


def _slice_sentence(
    outcome: RuleOutcome, part: _Slice, harmed: bool, tells: bool, may_veto: bool
) -> str:
    gained, lost = outcome.discordant
    loss = outcome.detectable
    if harmed:
        finding = "significantly worse" + ("" if may_veto else ", which is noted but does not veto")
        reach = ""
    elif tells:
        finding = "not significantly worse"
        reach = f" A loss of {_number(loss)} would have shown with {POWER * 100:g}% probability."
    else:
        finding = "too small to tell"
        least = f"only a loss of {_number(loss)} or more" if loss else "no loss at all"
        reach = f" Of so few examples {least} would have shown with {POWER * 100:g}% probability."
    return (
        f"On {part.words} accuracy is {_number(outcome.candidate)} against "
        f"{_number(outcome.baseline)} for the baseline: {finding} (difference "
        f"{_signed(outcome.difference)}, corrected {_p_value(outcome.p_value)}, "
        f"{_count(outcome.examples, 'example')}, {gained} gained and {lost} lost).{reach}"
    )


def _emptied(name: str, before: _Answers, known: _Answers, may_veto: bool) -> Iterator[RuleOutcome]:
    """Slices that the test set has, but only with examples that a model has seen."""
    if name == "length":
        return
    for value in sorted(set(before.slicing[name].tolist()) - set(known.slicing[name].tolist())):
        yield RuleOutcome(
            rule="error",
            name=f"no harm to {name} {value}",
            metric="accuracy",
            slice=f"{name}={value}",
            passed=False,
            vetoes=may_veto,
            sentence=f"Every test example of {name} {value} had been seen in training, so harm to "
            "it cannot be ruled out. Add examples of it, or set gate.slice_veto to false.",
        )


def _never_tested(label: str) -> RuleOutcome:
    return RuleOutcome(
        rule="no harm",
        name=f"no harm to label {label}",
        metric="accuracy",
        slice=f"label={label}",
        passed=True,
        vetoes=False,
        sentence=f"The test set has no example of label {label}: too small to tell.",
    )


# Metrics for reports


def metrics_of(table: pa.Table) -> dict[str, float]:
    """One model's metrics on the whole test set.

    Precision, recall and F1 are macro-averaged over the labels that are present in truth, as
    scikit-learn computes them with `zero_division=0`: a label that is only ever answered, and never
    right, lowers the recall of the others but has no term of its own.

    Args:
        table: Answers, with at least `label`, `predicted` and `loss`.

    Returns:
        `accuracy`, `precision`, `recall`, `f1`, and `loss`, the mean of the losses; that is NaN or
        infinite where one of them is.

    Raises:
        BadData: The table has no rows.
    """
    if not table.num_rows:
        raise BadData(
            "test split", "no examples", "at least one", "give more data to the test split"
        )
    metrics = _metrics(_values(table, "label"), _values(table, "predicted"))
    return {**metrics, "loss": _mean(_values(table, "loss"))}


def slice_metrics(table: pa.Table, slices: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """One model's metrics, slice by slice.

    On a slice by label, precision, recall and F1 are those of that label against the rest, on the
    whole test set, for within the slice its precision is 1 by construction. On other slices they
    are macro-averaged over the labels that are present in the slice's truth.

    Args:
        table: Answers, as `metrics_of` takes them, with the slicing columns; rows with an empty
            value form the slice `(none)`.
        slices: `label`, `length` (cut at the terciles), or string columns.

    Returns:
        For each slice (`label=sport`, `length=short`) the metrics of `metrics_of`, and `examples`.
    """
    truth, predicted = _values(table, "label"), _values(table, "predicted")
    found: dict[str, dict[str, float]] = {}
    for name in slices:
        values = _values(table, name)
        for part in _parts(name, values):
            metrics = metrics_of(table.filter(pa.array(part.rows)))
            if name == "label":
                label = values[part.rows][0]
                metrics.update(_scores(truth == label, predicted == label, [True]))
            found[part.name] = {**metrics, "examples": float(part.rows.sum())}
    return found


def _metrics(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    labels = sorted(set(truth.tolist()))
    return {
        "accuracy": _mean(truth == predicted),
        **_scores(truth.astype(str), predicted.astype(str), labels),
    }


def _scores(truth: np.ndarray, predicted: np.ndarray, labels: list[Any]) -> dict[str, float]:
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, predicted, labels=labels, average="macro", zero_division=0
    )
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1)}


# Words and numbers


def _summary(
    promoted: bool, outcomes: list[RuleOutcome], examples: int, baseline: str, look_number: int
) -> str:
    against = "without a baseline" if baseline == NO_BASELINE else f"against {baseline}"
    failed = [rule for rule in outcomes if not rule.passed and rule.vetoes]
    errors = [rule.sentence for rule in failed if rule.rule == "error"]
    if promoted:
        claims = [rule.name for rule in outcomes if rule.rule in ("better", "not worse")]
        shown = claims or [rule.name for rule in outcomes if rule.rule == "floor"]
        summary = f"Promoted {against}, on {_count(examples, 'example')}: {'; '.join(shown)}."
    elif errors:
        summary = f"Rejected {against}: {' '.join(errors)}"
    else:
        unmet = "; ".join(rule.name for rule in failed)
        summary = f"Rejected {against}, on {_count(examples, 'example')}, for want of: {unmet}."
    if look_number > 1:
        summary += (
            f" This test set has now served {look_number} verdicts: with each, a lucky pass "
            "becomes likelier."
        )
    return summary


def _error(reason: str) -> RuleOutcome:
    return RuleOutcome(
        rule="error", name="evidence that can be judged", metric="", passed=False, sentence=reason
    )


def _saying(outcome: RuleOutcome, sentence: str) -> RuleOutcome:
    return outcome.model_copy(update={"sentence": sentence})


def _alpha(rules: GateRecipe) -> float:
    # Rounded, because 1 - 0.95 is a little more than 0.05.
    return round(1 - rules.confidence, 12)


def _two_sided(rules: GateRecipe) -> float:
    """The two-sided confidence whose interval leaves a one-sided test's error on each side."""
    return round(2 * rules.confidence - 1, 12)


def _discordance(known: _Answers) -> float:
    return sum(known.discordant) / len(known) or STATED_DISCORDANCE


def _mean(values: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        return float(values.mean())


def _number(value: float, digits: int = 3) -> str:
    """Three decimals, or as many as a small value needs to differ from zero."""
    while value and digits < 6 and float(f"{value:.{digits}f}") == 0:
        digits += 1
    return f"{value:.{digits}f}".replace("-", "−")


def _signed(value: float) -> str:
    return _number(value) if value < 0 else f"+{_number(value)}"


def _apart(value: float, limit: float, digits: int = 3) -> tuple[str, str]:
    """Both as text, with as many decimals as it takes to tell them apart."""
    while value != limit and digits < 9 and f"{value:.{digits}f}" == f"{limit:.{digits}f}":
        digits += 1
    return f"{value:.{digits}f}", f"{limit:g}"


def _p_value(p_value: float) -> str:
    return "p < 0.0001" if p_value < 0.0001 else f"p = {p_value:.2g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _list(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
