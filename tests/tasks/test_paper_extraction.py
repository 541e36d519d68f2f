"""What counts of an answer, and its score, against EEP's rules written out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.tasks.paper import extraction, scores

OPTIONS = [
    # The first rule that fits decides: the start, the end, what is said, a letter alone, any.
    ("A", "A"),
    ("B.", "B"),
    ("B: No", "B"),
    ("A, because B is wrong.", "A"),
    (" B. No", "B"),
    ("(B) No", "B"),
    ("The answer is (B), not A, I think.", "B"),
    ("The correct answer is option B so A is wrong here", "B"),
    ("Both A and B are options, I take B", "B"),
    ("I think A fits better than B does", "A"),
    ("1. (B) And so on", "A"),  # of several letters in what fits, the first option
    ("xB: yes", "B"),
    ("BxA", "B"),
    ("Because", "B"),
    ("no", ""),
    ("", ""),
]


@pytest.mark.parametrize(("text", "option"), OPTIONS)
def test_the_first_rule_that_fits_names_the_option(text: str, option: str) -> None:
    assert extraction.option_of(text, "AB") == option


def test_only_options_of_the_task_are_options() -> None:
    assert extraction.option_of("C. Neutral", "ABC") == "C"
    assert extraction.option_of("D) all of C", "ABCD") == "C"  # a letter alone before any letter
    assert extraction.option_of("C. Neutral", "AB") == ""


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A. Yes", "A"),
        (" b. no", ""),
        ("the B", "B"),
        ("The answer is B", "T"),
        ("", ""),
        ("é É", "É"),
    ],
)
def test_the_first_capital_letter_counts_wherever_it_stands(text: str, letter: str) -> None:
    assert extraction.capital_of(text) == letter


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("23.5%-8.7%=14.8%. So the answer is 14.8.", "14.8"),
        ("5-3=2. So the answer is 2.", "2"),
        ("-7 points", "-7"),
        ("1,250 people", "250"),
        ("It is 4.\n\nText: x\nQuestion: How many of 9?", "4"),
        ("none", "NULL"),
        ("", "NULL"),
    ],
)
def test_the_last_number_before_the_next_question_counts(text: str, number: str) -> None:
    assert extraction.number_of(text) == number


def test_an_entity_is_the_first_line_that_says_something() -> None:
    assert extraction.entity_of("\n\n Answer: Puerto Rico \nThe passage ...") == "Puerto Rico"
    assert extraction.entity_of("  ") == ""


def test_a_statement_is_the_first_line_behind_answer_is() -> None:
    assert extraction.statement_of("So the Answer IS Denmark.\nBecause") == " denmark."
    assert extraction.statement_of("\nDenmark") == ""


def test_filters_keep_the_shape_that_lm_eval_gives() -> None:
    assert extraction.option_abc([["C.", "A."], ["x"]], None) == [["C", "A"], [""]]
    assert extraction.last_number([["it is 5"]], None) == [["5"]]


def test_a_letter_is_right_or_wrong() -> None:
    assert scores.same({"golds": ["A"]}, ["A"]) == {"acc": 1.0}
    assert scores.same({"golds": ["A"]}, ["B"]) == {"acc": 0.0}
    assert scores.same({"golds": ["A"]}, [""]) == {"acc": 0.0}


@pytest.mark.parametrize(
    ("golds", "said", "acc", "exact"),
    [
        (["24"], "24", 1, 1),
        (["24", "24 points"], "24", 1, 1),
        (["5"], "15", 1, 0),  # what the released evaluation takes, and `exact_match` does not
        (["14.8"], "14.80", 1, 1),
        (["14.8"], "14.2", 1, 0),  # it compares what stands before the point
        (["24"], "NULL", 0, 0),
        (["Puerto Rico"], "The Puerto Rico.", 1, 1),
        (["Puerto Rico"], "It is Puerto Rico, not Spain", 1, 0),
        (["Puerto Rico"], "puerto rico", 0, 0),
        (["Puerto Rico"], "", 0, 0),
        (["The"], "Spain", 0, 0),  # an article alone would lie in every answer
    ],
)
def test_numbers_and_entities_are_right_where_a_gold_lies_within(
    golds: list[str], said: str, acc: float, exact: float
) -> None:
    assert scores.names_gold({"golds": golds}, [said]) == {"acc": acc, "exact_match": exact}


@pytest.mark.parametrize(
    ("golds", "said", "acc", "exact"),
    [
        (["Denmark"], "denmark.", 1, 1),
        (["the Vikings"], " they were vikings", 1, 0),
        (["Denmark"], " from norway, not denmark", 0, 0),  # ends at the first comma
        (["impossible to answer"], " `impossible to answer`", 1, 1),
        (["Denmark"], "", 0, 0),
    ],
)
def test_statements_are_right_where_a_gold_lies_within_whatever_its_case(
    golds: list[str], said: str, acc: float, exact: float
) -> None:
    assert scores.states_gold({"golds": golds}, [said]) == {"acc": acc, "exact_match": exact}


_PIECES = ("A", "B", "D", ".", ":", "(", "1.", "\n", " ", "The answer is ", "-3.5", "\uff0c", "\0")
_ANSWERS = st.one_of(
    st.text(max_size=40), st.lists(st.sampled_from(_PIECES), max_size=12).map("".join)
)


@given(_ANSWERS)
def test_no_answer_is_too_odd(text: str) -> None:
    assert extraction.capital_of(text) in {"", *text}
    for options in ("AB", "ABC", "ABCD"):
        option = extraction.option_of(text, options)
        assert option in {"", *options}
        # The weakest rule takes any option, so none is left out.
        assert bool(option) == any(letter in text for letter in options)
    number = extraction.number_of(text)
    assert number == extraction.NO_NUMBER or float(number) is not None
    assert "\n" not in extraction.entity_of(text)
    statement = extraction.statement_of(text)
    assert statement == statement.lower() or not statement.isascii()


@given(_ANSWERS, st.lists(_ANSWERS))
def test_every_answer_gets_a_score_and_the_strict_one_never_wants_more_words(
    text: str, golds: list[str]
) -> None:
    for score in (scores.names_gold, scores.states_gold):
        found = score({"golds": golds}, [text])
        assert set(found) == {"acc", "exact_match"}
        assert set(found.values()) <= {0.0, 1.0}
        if not golds:
            assert found == {"acc": 0.0, "exact_match": 0.0}
