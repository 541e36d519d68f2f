from __future__ import annotations

import random
import re
from itertools import islice

import pytest

from benchmarks.testbed.puzzles import MAKERS, distinct, stream


def _solved_arithmetic(prompt: str) -> str:
    left, sign, right = re.fullmatch(r"(\d+)([+-])(\d+)=", prompt).groups()  # type: ignore[union-attr]
    return str(int(left) + int(right) * (1 if sign == "+" else -1))


def _solved_lookup(prompt: str) -> str:
    pairs, question = prompt.removeprefix("List: ").splitlines()
    table = dict(pair.split(" ") for pair in pairs.split("; "))
    return table[question.removeprefix("Find ")]


def _solved_pattern(prompt: str) -> str:
    row = prompt.removeprefix("Next: ").removesuffix(" ->").split()
    if row[0].isdigit():
        return str(2 * int(row[-1]) - int(row[-2]))
    if all(len(word) == 1 for word in row):
        return chr(2 * ord(row[-1]) - ord(row[-2]))
    period = next(p for p in range(2, 5) if row[p:] == row[:-p])
    return row[-period]


_SOLVED = {
    "arithmetic": _solved_arithmetic,
    "lookup": _solved_lookup,
    "pattern": _solved_pattern,
}


@pytest.mark.parametrize("name", MAKERS)
def test_answers_are_right_and_among_four_different_choices(name: str) -> None:
    rng = random.Random(1)
    for _ in range(500):
        puzzle = MAKERS[name](rng)
        assert puzzle.answer == _SOLVED[name](puzzle.prompt)
        assert len(set(puzzle.choices)) == 4
        assert puzzle.answer in puzzle.choices


@pytest.mark.parametrize("name", MAKERS)
def test_the_right_choice_has_no_preferred_place(name: str) -> None:
    places = [p.choices.index(p.answer) for p in distinct(name, "pool", 800)]
    assert all(150 < places.count(place) < 250 for place in range(4))


@pytest.mark.parametrize("name", MAKERS)
def test_sides_share_no_puzzle(name: str) -> None:
    pool = {p.prompt for p in distinct(name, "pool", 1600)}
    test = {p.prompt for p in distinct(name, "test", 1200)}
    train = {p.prompt for p in islice(stream(name, "train", 0), 5000)}
    assert (len(pool), len(test)) == (1600, 1200)
    assert not pool & test
    assert not train & (pool | test)


def test_later_questions_of_a_training_text_are_right() -> None:
    for puzzle in islice(stream("lookup", "train", 0), 50):
        pairs, _ = puzzle.prompt.splitlines()
        for prompt, answer in puzzle.more:
            assert answer == _solved_lookup(f"{pairs}\n{prompt}")


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_seed_gives_the_same_puzzles(name: str) -> None:
    assert distinct(name, "test", 50) == distinct(name, "test", 50)
    assert distinct(name, "test", 50, seed=1) != distinct(name, "test", 50)
