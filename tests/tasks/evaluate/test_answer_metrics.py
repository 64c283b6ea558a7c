"""Metrics of generated answers, compared with values computed by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.contracts.errors import BadRecipe
from tasks.evaluate import answer_metrics
from tasks.evaluate.answer_metrics import Checks, exact_match, rouge_l, token_f1, words

WORDS = ["the", "cat", "sat", "on", "mat", "dog"]
SENTENCES = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)


class TestExactMatch:
    @pytest.mark.parametrize(
        ("answer", "reference", "value"),
        [
            ("The Eiffel Tower!", "eiffel tower", 1),
            ("  a  cat ", "cat", 1),
            ("U.S.A.", "USA", 1),
            ("Theodor", "odor", 0),
            ("cats", "cat", 0),
            ("", "the", 1),
        ],
    )
    def test_ignores_what_squad_ignores(self, answer, reference, value):
        assert exact_match(answer, [reference]) == value

    def test_takes_the_best_reference(self):
        assert exact_match("two", ["one", "two"]) == 1

    def test_missing_reference_is_an_error(self):
        with pytest.raises(ValueError, match="no reference"):
            exact_match("two", [])


class TestTokenF1:
    @pytest.mark.parametrize(
        ("answer", "reference", "value"),
        [
            # 2 words in common, of 3 and of 2 (the article does not count).
            ("the big red dog", "red dog", 2 * 2 / (3 + 2)),
            ("dog dog dog", "dog", 2 * 1 / (3 + 1)),
            ("dog", "cat", 0),
            ("", "", 1),
            ("", "cat", 0),
            ("the", "an", 1),
        ],
    )
    def test_counts_words_in_common(self, answer, reference, value):
        assert token_f1(answer, [reference]) == pytest.approx(value)

    def test_takes_the_best_reference(self):
        assert token_f1("red dog", ["cat", "red dog house"]) == pytest.approx(4 / 5)


class TestRougeL:
    @pytest.mark.parametrize(
        ("answer", "reference", "value"),
        [
            # Lin 2004, section 3: sentences S2 and S3 against S1.
            ("police kill the gunman", "police killed the gunman", 3 / 4),
            ("the gunman kill police", "police killed the gunman", 2 / 4),
            # The longest common subsequence is "the cat the mat": 4 of 6 and of 5.
            ("the cat sat on the mat", "The cat, under the mat", 2 * 4 / (6 + 5)),
            ("don't", "don t", 1),
            ("", "", 0),
            ("...", "cat", 0),
        ],
    )
    def test_is_that_of_the_longest_common_subsequence(self, answer, reference, value):
        assert rouge_l(answer, [reference]) == pytest.approx(value)

    def test_takes_the_best_reference(self):
        assert rouge_l("a b c", ["x", "a b c"]) == 1

    @given(SENTENCES, SENTENCES)
    def test_agrees_with_dynamic_programming(self, one, other):
        mine, yours = words(one), words(other)
        table = [[0] * (len(yours) + 1) for _ in range(len(mine) + 1)]
        for i, left in enumerate(mine):
            for j, right in enumerate(yours):
                table[i + 1][j + 1] = (
                    table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
                )
        common, lengths = table[-1][-1], len(mine) + len(yours)
        expected = 2 * common / lengths if mine and yours else 0
        assert rouge_l(one, [other]) == pytest.approx(expected)

    def test_letters_of_all_scripts_count(self):
        assert words("La construcción, ¿sí? 北京2024 don_t") == [
            *("la", "construcción", "sí", "北", "京", "2024", "don", "t"),
        ]


class TestChecks:
    def test_without_checks_there_is_no_value(self):
        assert Checks()("anything") is None

    def test_expression_is_searched_for(self):
        check = Checks(must_match=r"\b\d{4}\b")
        assert (check("in 1999, yes"), check("in 99")) == (1, 0)

    def test_unwanted_strings_are_case_sensitive(self):
        check = Checks(must_not_contain=("As an AI", "sorry"))
        assert (check("fine"), check("I am sorry"), check("Sorry")) == (1, 0, 1)

    @pytest.mark.parametrize(
        ("answer", "value"),
        [
            ('{"n": 3}', 1),
            ('```json\n{"n": 3}\n```', 1),
            (' ```\n{"n": 3}\n``` ', 1),
            ('{"n": "3"}', 0),
            ("{n: 3}", 0),
            ('Here: {"n": 3}', 0),
            ("", 0),
        ],
    )
    def test_schema_must_be_satisfied(self, answer, value):
        schema = '{"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}'
        assert Checks(json_schema=schema)(answer) == value

    def test_several_checks_give_a_share(self):
        check = Checks("a", ("b",), '{"type": "object"}')
        assert check("ab") == pytest.approx(1 / 3)
        assert check('{"a": 1}') == 1

    @pytest.mark.parametrize(
        "schema", ["nope", "3", '{"type": 3}', '{"$ref": "https://example.org/x.json"}']
    )
    def test_invalid_schema_is_refused_and_never_fetched(self, schema):
        with pytest.raises(BadRecipe, match=r"evaluation\.json_schema"):
            Checks(json_schema=schema)("{}")

    def test_invalid_expression_is_refused(self):
        with pytest.raises(BadRecipe, match=r"evaluation\.must_match"):
            Checks(must_match="(")

    def test_fence_is_removed_only_around_the_whole_answer(self):
        assert answer_metrics.without_fence("x ```json\n1\n```") == "x ```json\n1\n```"
