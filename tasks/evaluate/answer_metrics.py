"""Metrics of a generated answer against its references, and checks: pure functions of strings.

Exact match and token F1 are those of SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250), ROUGE-L is
that of Lin (2004, ACL workshop "Text Summarization Branches Out"). If an input has several
references, the best one counts. All values are between 0 and 1.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from tasks.contracts.errors import BadRecipe

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
# Runs of letters and digits; in scripts without spaces, single characters.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORDS = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_FENCE = re.compile(r"\A\s*```[ \t]*(?:json)?[ \t]*\n(.*?)\n?[ \t]*```\s*\Z", re.DOTALL | re.I)


def normalized(text: str) -> str:
    """The text in lower case, without ASCII punctuation, English articles and extra spaces.

    As in SQuAD's own script (Rajpurkar et al. 2016, arXiv:1606.05250, section 5).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the answer equals a reference after `normalized`, else 0.

    Args:
        answer: The generated answer.
        references: The right answers, at least one.

    Raises:
        ValueError: There is no reference.
    """
    return _best(lambda one, other: float(one == other), normalized, answer, references)


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Harmonic mean of the precision and recall of words, counted with their multiplicity.

    Args:
        answer: The generated answer.
        references: The right answers, at least one; the best one counts. An answer to a reference
            without words scores 1 if it has no words either, else 0.

    Raises:
        ValueError: There is no reference.
    """
    return _best(_overlap, lambda text: normalized(text).split(), answer, references)


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """ROUGE-L's F-measure: the longest common subsequence of words, as a share of each text's.

    With beta = 1 (Lin 2004, equation 4), on words in lower case, without stemming. On ASCII texts
    it equals `rougeL` of the package `rouge_score`, which drops all other letters. Here they count,
    and each Chinese or Japanese character is a word.

    Args:
        answer: The generated answer.
        references: The right answers, at least one; the best one counts.

    Returns:
        The F-measure; 0 if either text has no words.

    Raises:
        ValueError: There is no reference.
    """
    return _best(_subsequence_f, words, answer, references)


def words(text: str) -> list[str]:
    """A text's words in lower case: runs of letters and digits; single Han or kana characters."""
    return _WORDS.findall(text.lower())


class Checks:
    """Checks on every answer, independent of its references.

    Args:
        must_match: A regular expression to search for in the answer; empty for no check.
        must_not_contain: Strings that must not occur; case-sensitive.
        json_schema: A JSON Schema, as JSON; empty for no check. An answer may be enclosed in a
            fence of three backticks.

    Raises:
        BadRecipe: The expression or the schema is not valid.
    """

    def __init__(
        self, must_match: str = "", must_not_contain: Sequence[str] = (), json_schema: str = ""
    ) -> None:
        self._checks: list[Callable[[str], bool]] = []
        if must_match:
            expression = _expression(must_match)
            self._checks.append(lambda answer: expression.search(answer) is not None)
        if must_not_contain:
            unwanted = tuple(must_not_contain)
            self._checks.append(lambda answer: not any(part in answer for part in unwanted))
        if json_schema:
            self._checks.append(_schema_check(json_schema))

    def __call__(self, answer: str) -> float | None:
        """The share of checks that the answer passes; None without checks."""
        if not self._checks:
            return None
        return sum(check(answer) for check in self._checks) / len(self._checks)


def without_fence(answer: str) -> str:
    """The answer without a fence of three backticks around it."""
    found = _FENCE.match(answer)
    return found[1] if found else answer


def _best(
    measure: Callable[[Any, Any], float],
    prepare: Callable[[str], Any],
    answer: str,
    references: Sequence[str],
) -> float:
    if not references:
        raise ValueError("no reference to compare the answer with")
    prepared = prepare(answer)
    return max(measure(prepared, prepare(reference)) for reference in references)


def _overlap(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    common = (Counter(answer) & Counter(reference)).total()
    return 2 * common / (len(answer) + len(reference))


def _subsequence_f(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return 0.0
    return 2 * _common_subsequence(answer, reference) / (len(answer) + len(reference))


def _common_subsequence(one: list[str], other: list[str]) -> int:
    """Length of the longest common subsequence, bit-parallel in one long integer.

    Bit j of the row is 0 if the subsequence grows at word j of `one` (Crochemore et al. 2001,
    Information Processing Letters 80:279): a text of a thousand words takes a millisecond.
    """
    masks: dict[str, int] = {}
    for position, word in enumerate(one):
        masks[word] = masks.get(word, 0) | (1 << position)
    every = (1 << len(one)) - 1
    row = every
    for word in other:
        matches = row & masks.get(word, 0)
        row = ((row + matches) | (row - matches)) & every
    return len(one) - row.bit_count()


def _expression(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise BadRecipe(
            "evaluation.must_match",
            f"{pattern!r}, which is not a regular expression ({error})",
            "a Python regular expression",
            "correct it; put a backslash before special characters that are meant literally",
        ) from None


def _schema_check(text: str) -> Callable[[str], bool]:
    # Imported only if there is a schema, because the import takes a moment.
    import jsonschema
    import jsonschema_specifications
    import referencing.exceptions

    try:
        schema = orjson.loads(text)
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
    except (orjson.JSONDecodeError, jsonschema.SchemaError, AttributeError, TypeError) as error:
        raise _bad_schema(str(error).splitlines()[0]) from None
    # With a registry of its own it never fetches a schema from the network.
    validator = kind(schema, registry=jsonschema_specifications.REGISTRY)

    def holds(answer: str) -> bool:
        try:
            return validator.is_valid(orjson.loads(without_fence(answer)))
        except orjson.JSONDecodeError:
            return False
        except referencing.exceptions.Unresolvable as error:
            raise _bad_schema(f"it refers to {error.ref}, which it does not contain") from None

    return holds


def _bad_schema(why: str) -> BadRecipe:
    return BadRecipe(
        "evaluation.json_schema",
        f"a text that is not a usable JSON Schema ({why})",
        "a self-contained JSON Schema, as JSON",
        "correct it; move everything it refers to into its own $defs",
    )
