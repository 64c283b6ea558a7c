"""What a written answer is worth, beside its references: pure functions of strings.

Exact match and token F1 are those of SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250), ROUGE-L is
that of Lin (2004, ACL workshop "Text Summarization Branches Out"). Where an input has several
references, the best counts. All values are between 0 and 1.
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
# Letters and digits that belong together; of scripts without spaces, each sign.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORDS = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_FENCE = re.compile(r"\A\s*```[ \t]*(?:json)?[ \t]*\n(.*?)\n?[ \t]*```\s*\Z", re.DOTALL | re.I)


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and superfluous spaces, as SQuAD's
    own script does it (Rajpurkar et al. 2016, arXiv:1606.05250, section 5)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 where the answer equals a reference after `normalised`, else 0.

    Args:
        answer: What was written.
        references: What would be right, at least one.

    Raises:
        ValueError: There is no reference.
    """
    return _best(lambda one, other: float(one == other), normalised, answer, references)


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the words, each counted as often as it occurs.

    Args:
        answer: What was written.
        references: What would be right, at least one; the best counts. Against a reference
            without a word only an answer without a word is right, and it is so entirely.

    Raises:
        ValueError: There is no reference.
    """
    return _best(_overlap, lambda text: normalised(text).split(), answer, references)


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """ROUGE-L's F-measure: the longest common subsequence of words, as a share of each text's.

    With beta = 1 (Lin 2004, equation 4), on lower-cased words without stemming. On ASCII texts it
    is what the `rouge_score` package calls `rougeL`; that package drops all other letters, which
    here are letters too, and signs of Chinese and Japanese are words.

    Args:
        answer: What was written.
        references: What would be right, at least one; the best counts.

    Returns:
        0 where either has no words.

    Raises:
        ValueError: There is no reference.
    """
    return _best(_subsequence_f, words, answer, references)


def words(text: str) -> list[str]:
    """A text's words in lower case: runs of letters and digits; single signs of Han and kana."""
    return _WORDS.findall(text.lower())


class Checks:
    """What is asked of every answer, whatever its reference.

    Args:
        must_match: A regular expression that is searched for in the answer; empty: none.
        must_not_contain: Strings of which none may occur, in this very case.
        json_schema: A JSON Schema, as JSON; empty: none. An answer may stand in a fence of
            three backticks.

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
        """Share of the asked checks that hold; None where none is asked."""
        if not self._checks:
            return None
        return sum(check(answer) for check in self._checks) / len(self._checks)


def without_fence(answer: str) -> str:
    """What stands between three backticks, where the whole answer does; else the answer."""
    found = _FENCE.match(answer)
    return found[1] if found else answer


def _best(
    measure: Callable[[Any, Any], float],
    prepared: Callable[[str], Any],
    answer: str,
    references: Sequence[str],
) -> float:
    if not references:
        raise ValueError("no reference to hold the answer against")
    mine = prepared(answer)
    return max(measure(mine, prepared(reference)) for reference in references)


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
    """Length of the longest common subsequence, by the bits of one long integer.

    Bit j of the row is 0 where the subsequence grows at word j of `one` (Crochemore et al. 2001,
    Information Processing Letters 80:279): a text of a thousand words takes a millisecond.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | (1 << place)
    every = (1 << len(one)) - 1
    row = every
    for word in other:
        here = row & places.get(word, 0)
        row = ((row + here) | (row - here)) & every
    return len(one) - row.bit_count()


def _expression(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise BadRecipe(
            "evaluation.must_match",
            f"{pattern!r}, which is no regular expression ({error})",
            "a regular expression of Python",
            "correct it; put a backslash before signs that stand for themselves",
        ) from None


def _schema_check(text: str) -> Callable[[str], bool]:
    # Only where a schema is asked for: it takes a moment to import.
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
            raise _bad_schema(f"it refers to {error.ref}, which is not in it") from None

    return holds


def _bad_schema(why: str) -> BadRecipe:
    return BadRecipe(
        "evaluation.json_schema",
        f"what is no usable JSON Schema ({why})",
        "a JSON Schema, whole in itself, as JSON",
        "correct it; what it refers to must stand in its own $defs",
    )
