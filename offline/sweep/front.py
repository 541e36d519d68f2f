"""Which of many choices are worth a second look, and which is to be taken. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class Sized(Protocol):
    """What costs memory and work."""

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""

    @property
    def active(self) -> float:
        """Experts per token."""


def as_small(one: Sized, other: Sized) -> bool:
    """Whether ``one`` takes neither more bytes nor more active experts than the other."""
    return one.num_bytes <= other.num_bytes and one.active <= other.active


def front(sizes: Mapping[str, Sized], quality: Mapping[str, float]) -> set[str]:
    """Return the names of those that no other beats: as small, as good, and better in one.

    :param quality: name -> value, higher is better; others are not looked at
    """
    return {
        name
        for name, value in quality.items()
        if not any(
            as_small(sizes[other], sizes[name])
            and better >= value
            and (better > value or not as_small(sizes[name], sizes[other]))
            for other, better in quality.items()
            if other != name
        )
    }


def finalists(
    sizes: Mapping[str, Sized],
    fitness: Mapping[str, float],
    classes: Sequence[Sequence[str]],
    most: int,
    slack: float,
) -> list[str]:
    """Return the best few of each size that are within ``slack`` of all that are as small.

    :param fitness: name -> that on all search items; the others were dropped
    :param classes: names by size
    """
    found = []
    for names in classes:
        complete = [name for name in names if name in fitness]
        for name in sorted(complete, key=lambda n: (-fitness[n], n))[:most]:
            best = max(
                value for other, value in fitness.items() if as_small(sizes[other], sizes[name])
            )
            if fitness[name] >= best - slack:
                found.append(name)
    return found


def smallest(sizes: Mapping[str, Sized], quality: Mapping[str, float]) -> str | None:
    """Return the smallest of some; of equals that with fewer active experts, then the better."""
    return min(
        quality,
        key=lambda name: (sizes[name].num_bytes, sizes[name].active, -quality[name], name),
        default=None,
    )
