"""What was answered, held against the base's words and against what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.answers import (
    ANSWERS,
    Answer,
    Answers,
    alike,
    is_right,
    mean_tokens,
    proportion,
    read_answers,
    write_answers,
)
from vllm_moe_prune.errors import PruneError


def answer(index: int, text: str | None, right: bool | None = None) -> Answer:
    return Answer(index=index, text=text, tokens=5 + index, right=right)


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ("a b c d", "a b c d", 1.0),
        ("a b x d", "a b c d", 0.5),  # what comes after the first other word is another answer
        ("a b", "a b c d", 0.5),
        ("x b c d", "a b c d", 0.0),
        ("", "", 1.0),
        ("", "a", 0.0),
    ],
)
def test_alike_is_the_share_of_words_before_they_part(one: str, other: str, share: float) -> None:
    assert alike(one, other) == alike(other, one) == share


@pytest.mark.parametrize(
    ("text", "expected", "right"),
    [
        ("The answer is: PARIS.", "paris", True),
        ("Comparison", "paris", False),
        ("It is 42!", "42", True),
        ("It is 142.", "42", False),
        ("New York, then", "new york", True),
        ("New and York", "new york", False),
    ],
)
def test_an_answer_is_right_if_it_has_the_expected_words(
    text: str, expected: str, right: bool
) -> None:
    assert is_right(text, expected) is right


def test_sides_are_compared_request_by_request() -> None:
    base = [answer(0, "a b", True), answer(1, "c d", True), answer(2, None, False)]
    other = [answer(2, "e"), answer(1, "c x", False), answer(0, "a b", True)]
    found = Answers.of("pruned", other, base)
    assert (found.asked, found.answered, found.compared, found.equal) == (3, 3, 2, 1)
    assert found.alike == 0.75
    assert (found.right, found.expected) == (1, 2)
    assert Answers.of("base", base, []).alike is None
    assert mean_tokens(base) == 5.5 and mean_tokens([answer(0, None)]) is None


def test_wilson_s_interval() -> None:
    assert proportion(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert proportion(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert proportion(10, 10)[1] == pytest.approx(1)


def test_answers_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_answers(tmp_path) == []
    found = [answer(0, "ä\n\u2028b"), answer(1, None, True)]
    write_answers(tmp_path, found)
    assert read_answers(tmp_path) == found
    (tmp_path / ANSWERS).write_text("{}\n")
    with pytest.raises(PruneError, match=r"answers\.jsonl holds what is no answer: ") as caught:
        read_answers(tmp_path)
    assert "\n" not in str(caught.value)
