"""The front, the finalists and the smallest: pure."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from offline.sweep.front import as_small, finalists, front, smallest


@dataclass(frozen=True)
class Point:
    num_bytes: int
    active: float


SIZES = {
    "small": Point(10, 2),
    "small, top-1": Point(10, 1),
    "middle": Point(20, 2),
    "other middle": Point(20, 2),
    "large": Point(30, 2),
}
QUALITY = {"small": 0.5, "small, top-1": 0.4, "middle": 0.8, "other middle": 0.7, "large": 0.8}


def test_the_front_is_what_nothing_beats() -> None:
    assert front(SIZES, QUALITY) == {"small", "small, top-1", "middle"}
    assert front(SIZES, {**QUALITY, "other middle": 0.8}) >= {"middle", "other middle"}


points = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 5))


@given(st.lists(points, min_size=1, max_size=12))
def test_nobody_on_the_front_is_beaten_and_all_others_are(
    found: list[tuple[int, int, int]],
) -> None:
    sizes = {str(n): Point(size, active) for n, (size, active, _) in enumerate(found)}
    quality = {str(n): value / 5 for n, (_, _, value) in enumerate(found)}

    def beats(one: str, other: str) -> bool:
        a, b = sizes[one], sizes[other]
        strict = (a.num_bytes, a.active) != (b.num_bytes, b.active) or quality[one] > quality[other]
        return as_small(a, b) and quality[one] >= quality[other] and strict

    best = front(sizes, quality)
    assert best
    for name in sizes:
        assert (name in best) is not any(beats(other, name) for other in sizes)


def test_finalists_are_the_best_of_each_size_that_are_near_what_is_as_small() -> None:
    classes = [["small", "small, top-1"], ["middle", "other middle"], ["large"]]
    fitness = {"small": 0.5, "middle": 0.8, "other middle": 0.79, "large": 0.7}
    assert finalists(SIZES, fitness, classes, 2, 0.03) == ["small", "middle", "other middle"]
    assert finalists(SIZES, fitness, classes, 1, 0.2) == ["small", "middle", "large"]


def test_the_smallest_and_of_equals_the_better() -> None:
    assert smallest(SIZES, QUALITY) == "small, top-1"
    assert smallest(SIZES, {"middle": 0.8, "other middle": 0.9}) == "other middle"
    assert smallest(SIZES, {}) is None
