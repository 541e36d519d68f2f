"""Rows of two models' answers: each measure's shares, their difference, what is beyond chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offline.results.check import TOLD_ONLY, Difference, Finding, Measure, Row, Share
from offline.results.intervals import doubled, mcnemar, paired_difference, pairs_needed, wilson

LEVEL = 0.01  # how often equal models may be told apart by chance, in all rows together
_LEAST_RATE = 0.01  # a rate of which a doubling matters
_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Counts:
    """How many probes have a measure in both models' answers, in one alone, in neither.

    Without a base all that the pruned model has counts as its alone.
    """

    kind: str
    sampling: str
    measure: Measure
    both: int
    only_pruned: int
    only_base: int
    neither: int
    has_base: bool
    examples: tuple[str, ...]

    @classmethod
    def of(
        cls,
        place: tuple[str, str, Measure],
        seen: Sequence[tuple[str, bool | None, bool]],
    ) -> Counts:
        """Count.

        :param place: kind, way of sampling, measure
        :param seen: of each probe its name, and whether base and pruned model have it
        """
        only_pruned = [name for name, base, pruned in seen if pruned and not base]
        return cls(
            *place,
            both=sum(bool(base and pruned) for _, base, pruned in seen),
            only_pruned=len(only_pruned),
            only_base=sum(bool(base and not pruned) for _, base, pruned in seen),
            neither=sum(not base and not pruned for _, base, pruned in seen),
            has_base=all(base is not None for _, base, _ in seen),
            examples=tuple(only_pruned[:_EXAMPLES]),
        )

    @property
    def n(self) -> int:
        """Return how many probes there are."""
        return self.both + self.only_pruned + self.only_base + self.neither

    @property
    def base(self) -> Share:
        """Return the base's share."""
        return _share(self.both + self.only_base, self.n)

    @property
    def pruned(self) -> Share:
        """Return the pruned model's share."""
        return _share(self.both + self.only_pruned, self.n)

    def row(self, level: float, beyond: Finding | None) -> Row:
        """Return the row.

        :param level: at which one row alone is tested
        :param beyond: ``more`` or ``fewer`` where that is beyond chance
        """
        if not self.has_base:
            return self._row(None, None, None, "no base")
        low, high = paired_difference(self.both, self.only_pruned, self.only_base, self.neither)
        difference = Difference(
            value=self.pruned.rate - self.base.rate,
            low=low,
            high=high,
            only_base=self.only_base,
            only_pruned=self.only_pruned,
            p=mcnemar(self.only_pruned, self.only_base),
        )
        rate = max(self.base.rate, _LEAST_RATE)
        needed = pairs_needed(rate, level)
        shown = needed is not None and self.n >= needed and high < doubled(rate) - rate
        alone: Finding = "no doubling" if shown else "undecided"
        return self._row(self.base, difference, needed, beyond or alone)

    def _row(
        self, base: Share | None, difference: Difference | None, needed: int | None, found: Finding
    ) -> Row:
        return Row(
            kind=self.kind,
            sampling=self.sampling,
            measure=self.measure,
            base=base,
            pruned=self.pruned,
            difference=difference,
            probes_needed=needed,
            finding=found,
            examples=self.examples,
        )


def rows_of(counts: Sequence[Counts]) -> tuple[Row, ...]:
    """Return the rows; ``more`` and ``fewer`` are decided over all rows together."""
    tested = [one.has_base and one.measure not in TOLD_ONLY for one in counts]
    more = _beyond_chance([(c.only_pruned, c.only_base) for c in counts], tested)
    fewer = _beyond_chance([(c.only_base, c.only_pruned) for c in counts], tested)
    level = LEVEL / max(1, sum(tested))
    return tuple(
        one.row(level, "more" if is_more else "fewer" if is_fewer else None)
        for one, is_more, is_fewer in zip(counts, more, fewer, strict=True)
    )


def _beyond_chance(pairs: Sequence[tuple[int, int]], tested: Sequence[bool]) -> list[bool]:
    """Return which of several tests hold, with one false alarm in 100 at most (Holm 1979)."""
    chances = {i: mcnemar(*pair) for i, pair in enumerate(pairs) if tested[i]}
    found = [False] * len(pairs)
    for rank, place in enumerate(sorted(chances, key=lambda place: chances[place])):
        if chances[place] > LEVEL / (len(chances) - rank):
            break
        found[place] = True
    return found


def _share(count: int, n: int) -> Share:
    low, high = wilson(count / n, n)
    return Share(count=count, n=n, rate=count / n, low=low, high=high)
