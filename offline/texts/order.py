"""Rows in an order that a seed gives, without more of them in memory than are asked for."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import islice, takewhile
from typing import Any, Protocol

from offline.texts.row import Row

_FIRST = 8 << 20  # bytes of rows that are kept in one reading of a file, at first
_BLOCK = 4096  # rows of a stream that are mixed with one another
_BLOCK_BYTES = 32 << 20  # and no more than so many


class Numbered(Protocol):
    """Rows that can be counted, and read again by their numbers."""

    def count(self) -> int:
        """Return how many there are."""

    def picked(self, wanted: Any) -> Iterator[tuple[int, Row]]:
        """Yield the rows of some numbers with these."""


def shuffled(source: Numbered, key: str) -> Iterator[Row]:
    """Yield all rows in the order in which ``random.Random(key)`` shuffles a list of them.

    The source is read once to count, and then once for as many rows of the order as fit into a
    budget of memory, which doubles with every reading: what is in memory grows with what is asked
    for, not with the source.
    """
    order = array("q", range(source.count()))
    random.Random(key).shuffle(order)
    places = array("q", bytes(8 * len(order)))  # of each number in the order
    for place, number in enumerate(order):
        places[number] = place
    begin, budget = 0, _FIRST
    while begin < len(order):
        rows = _Window(places, begin, len(order), budget).fill(source)
        if not rows:  # the file is not what it was when its rows were counted
            return
        yield from rows
        begin, budget = begin + len(rows), budget * 2


@dataclass(slots=True)
class _Window:
    """The numbers of rows that stand between two places of an order; the end comes nearer while
    rows are kept that are larger than the budget."""

    places: array[int]
    begin: int
    end: int
    budget: int

    def __contains__(self, number: object) -> bool:
        assert isinstance(number, int)
        return number < len(self.places) and self.begin <= self.places[number] < self.end

    def fill(self, source: Numbered) -> list[Row]:
        """Return the rows from the window's beginning on that fit into the budget, at least one."""
        kept: dict[int, tuple[Row, int]] = {}
        last: list[int] = []  # places that are kept, negative: the last one is first
        used = 0
        for number, row in source.picked(self):
            place = self.places[number]
            kept[place] = row, size_of(row.content)
            used += kept[place][1]
            heappush(last, -place)
            while used > self.budget and len(kept) > 1:
                self.end = -heappop(last)
                used -= kept.pop(self.end)[1]
        whole = takewhile(kept.__contains__, range(self.begin, self.end))
        return [kept[place][0] for place in whole]


def mixed(rows: Iterable[Row], key: str) -> Iterator[Row]:
    """Yield a stream's rows mixed in blocks: the order of `shuffled` for as many as a block has.

    :param rows: of which no more are read than are asked for, rounded up to a block
    """
    rng, rest = random.Random(key), iter(rows)
    while block := list(islice(_within(rest, _BLOCK_BYTES), _BLOCK)):
        rng.shuffle(block)
        yield from block


def _within(rows: Iterator[Row], budget: int) -> Iterator[Row]:
    """Yield rows until they are as large as a budget, at least one."""
    used = 0
    for row in rows:
        yield row
        used += size_of(row.content)
        if used >= budget:
            return


def size_of(value: Any) -> int:
    """Return the bytes that a value takes in memory, about, however deep it is nested."""
    size, todo = 0, [value]
    while todo:
        one = todo.pop()
        size += 64
        if isinstance(one, str):
            size += len(one) * (1 if one.isascii() else 4)
        elif isinstance(one, Mapping):
            todo += one.keys()
            todo += one.values()
        elif isinstance(one, list):
            todo += one
    return size
