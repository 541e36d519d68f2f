from __future__ import annotations

import pytest

from offline.tasks.answers import is_right, normalised


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" The Eiffel  Tower. ", "eiffel tower"),
        ("-5", "-5"),
        ("3.5.", "3.5"),
        (".5", ".5"),
        ("(42),", "42"),
        ("A", "a"),
        ("the cat's “hat”", "cats hat"),
        ("...", ""),
    ],
)
def test_normalised(text: str, expected: str) -> None:
    assert normalised(text) == expected


@pytest.mark.parametrize(
    ("metric", "text", "right"),
    [
        ("exact_match", " Paris.", True),
        ("exact_match", "Paris, France", False),
        ("exact_match", "-5", False),
        ("contains", "It is Paris, France\nno", True),
        ("contains", "It is\nParis", False),
        ("first_word", ' "Paris" and', True),
        ("first_word", "Paris's streets", False),
        ("first_word", "In Paris", False),
        ("exact_match", "", False),
        ("contains", "", False),
        ("first_word", "", False),
    ],
)
def test_a_text_is_right_by_its_metric(metric: str, text: str, right: bool) -> None:
    answers = ("paris", "5", "...")
    assert is_right(metric, text, answers) is right  # type: ignore[arg-type]
