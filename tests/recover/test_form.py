"""An answer in the right form: by what the right answers have in common."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.recover.form import Form
from offline.tasks.answers import is_right, normalised

TEXTS = st.text(max_size=20).filter(lambda text: bool(normalised(text)))


@given(st.lists(TEXTS, min_size=1, max_size=6), st.data())
def test_a_right_answer_always_has_the_form(answers: list[str], data: st.DataObject) -> None:
    form = Form.of(answers)
    text = data.draw(st.sampled_from(answers)).upper() + " "
    if is_right("exact_match", text, answers):
        assert form.fits(text)


@pytest.mark.parametrize(
    ("text", "fits"),
    [("431", True), ("-7.", True), ("1,000", True), ("seven", False), ("7 8", False), ("", False),
     ("...", False), ("The answer is 431", False)],
)  # fmt: skip
def test_numbers_want_a_number(text: str, fits: bool) -> None:
    assert Form.of(["435", "-2", "3.5"]).fits(text) is fits


@pytest.mark.parametrize(
    ("text", "fits"),
    [("a bible", True), ("cpp", True), ("the old testament", True), ("I think it is cpp", False)],
)
def test_words_want_no_more_words(text: str, fits: bool) -> None:
    assert Form.of(["wiki", "old testament"]).fits(text) is fits
