"""Tasks with exact answers, made by seeded code: arithmetic, pattern continuation, look-up.

The hash of a puzzle's key puts it on one of three sides for good, so that what the model is
trained on, what a search may see and what tests it never share a puzzle.
"""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Side = Literal["train", "pool", "test"]
_ANIMALS = (
    "ant ape bat bear bee bird boar bug bull calf cat cow crab crow deer dog dove duck eel elk "
    "emu fish flea fly fox frog goat goose gull hare hawk hen horse jay kid lamb lark lion lynx "
    "mole moth mouse mule newt owl ox pig pony pup ram rat seal sheep slug snail swan tick toad "
    "wasp wolf worm wren yak"
)
_THINGS = (
    "acid bag ball bell bed boat book bow box bread brick cake car card chair clay coal coin "
    "cup desk dish door drum fan fork gem glass gold hat ice ink iron jar key kite lamp lead lid "
    "map milk nail net nut oil pen pin pipe pot rice ring rope salt sand shoe silk soap soup tar "
    "tea tin tool wax wine wood wool"
)
_KEYS, _VALUES = _ANIMALS.split(), _THINGS.split()


@dataclass(frozen=True, slots=True)
class Puzzle:
    """A prompt and its answer; ``choices`` are four, one of them the answer.

    ``key`` is the same for puzzles that are to stay on one side together. ``more`` is
    text of further questions with answers about the same prompt; only training reads it.
    """

    key: str
    prompt: str
    answer: str
    choices: tuple[str, ...]
    more: tuple[tuple[str, str], ...] = ()

    @property
    def side(self) -> Side:
        """Return where this puzzle may be used: 66 % training, 20 % pool, 14 % test."""
        place = hashlib.sha256(self.key.encode()).digest()[0]
        return "train" if place < 168 else "pool" if place < 220 else "test"


def arithmetic(rng: random.Random) -> Puzzle:
    """Add one digit to a number below 500, or subtract it; no result is negative."""
    a, b, sign = rng.randrange(9, 500), rng.randint(1, 9), rng.choice("+-")
    answer = a + b if sign == "+" else a - b
    near = [answer + step for step in (-100, -20, -10, -2, -1, 1, 2, 10, 20, 100)]
    prompt = f"{a}{sign}{b}="
    return Puzzle(prompt, prompt, str(answer), _choices(rng, answer, near))


def pattern(rng: random.Random) -> Puzzle:
    """Continue a cycle of words, a row of numbers with a fixed step, or of letters."""
    kind = rng.choice(("words", "words", "numbers", "letters"))
    if kind == "words":
        period = rng.randint(2, 4)
        words = rng.sample(_KEYS, 4)
        row = [words[at % period] for at in range(2 * period + rng.randrange(period) + 1)]
        others = [word for word in words if word != row[-1]]
        return _row(rng, row, others)
    length = rng.randint(4, 6)
    if kind == "numbers":
        start, step = rng.randint(0, 60), rng.randint(1, 9)
        numbers = [start + at * step for at in range(length)]
        last = numbers[-1]
        others = [str(last + by) for by in (-2, -1, 1, 2, 3, step) if last + by != numbers[-2]]
        return _row(rng, [str(number) for number in numbers], others)
    step = rng.randint(1, 4)
    start = rng.randrange(26 - step * (length - 1))
    letters = string.ascii_lowercase[start::step][:length]
    at = string.ascii_lowercase.index(letters[-1])
    near = [string.ascii_lowercase[(at + by) % 26] for by in (-2, -1, 1, 2, 3)]
    return _row(rng, list(letters), [one for one in near if one not in letters])


def lookup(rng: random.Random) -> Puzzle:
    """Name the value that stands beside a key in a list of four pairs."""
    keys, values = rng.sample(_KEYS, 4), rng.sample(_VALUES, 4)
    table = dict(zip(keys, values, strict=True))
    shown = "; ".join(f"{key} {value}" for key, value in table.items())
    asked, *others = rng.sample(keys, 4)
    choices = rng.sample(values, 4)
    return Puzzle(
        key=f"{shown}?{asked}",
        prompt=f"List: {shown}\nFind {asked}",
        answer=table[asked],
        choices=tuple(choices),
        more=tuple((f"Find {other}", table[other]) for other in others),
    )


MAKERS: dict[str, Callable[[random.Random], Puzzle]] = {
    "arithmetic": arithmetic,
    "pattern": pattern,
    "lookup": lookup,
}


def stream(name: str, side: Side, seed: int) -> Iterator[Puzzle]:
    """Give endless puzzles of one kind and side, with repeats, in a seeded order."""
    rng = random.Random(f"{name} {side} {seed}")
    while True:
        puzzle = MAKERS[name](rng)
        if puzzle.side == side:
            yield puzzle


def distinct(name: str, side: Side, count: int, seed: int = 0) -> list[Puzzle]:
    """Return ``count`` puzzles of one kind and side without a key twice.

    :raises ValueError: if there are too few
    """
    found: dict[str, Puzzle] = {}
    for tried, puzzle in enumerate(stream(name, side, seed)):
        found.setdefault(puzzle.key, puzzle)
        if len(found) == count:
            return list(found.values())
        if tried > 200 * count:
            raise ValueError(f"{name} has only about {len(found)} puzzles on the side {side!r}")
    raise AssertionError("a stream has no end")


def _row(rng: random.Random, row: list[str], others: list[str]) -> Puzzle:
    """Make a puzzle that asks for the last element of a row."""
    shown, answer = " ".join(row[:-1]), row[-1]
    wrong = rng.sample(sorted(set(others) - {answer}), 3)
    choices = rng.sample([answer, *wrong], 4)
    return Puzzle(shown, f"Next: {shown} ->", answer, tuple(choices))


def _choices(rng: random.Random, answer: int, near: list[int]) -> tuple[str, ...]:
    return tuple(
        str(number)
        for number in rng.sample([answer, *rng.sample([n for n in near if n >= 0], 3)], 4)
    )
