"""Depth groups: neighbouring layers that share their experts' and router's matrices."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DepthGroup:
    """Layers that share one W_EM and one W_RM, of E columns and of ``least`` to ``most`` rows.

    Rows come and go ``step`` at a time: one in each group of a group-limited router.
    """

    layers: tuple[int, ...]
    num_experts: int
    least: int
    most: int
    step: int = 1

    @property
    def size(self) -> int:
        """How many layers keep one expert more when the group does."""
        return len(self.layers)

    @property
    def cost(self) -> int:
        """How many experts more all layers together keep with one step."""
        return self.size * self.step


Groups = tuple[DepthGroup, ...]


def depth_groups(layers: Sequence[int], num_groups: int) -> tuple[tuple[int, ...], ...]:
    """Split layers by depth into equal groups; the last one takes the remainder (EEP, A.1)."""
    num_groups = min(num_groups, len(layers))
    size = len(layers) // num_groups
    starts = [i * size for i in range(num_groups)] + [len(layers)]
    return tuple(tuple(layers[a:b]) for a, b in itertools.pairwise(starts))


def total_kept(rows: Sequence[int], groups: Groups) -> int:
    """Return the experts kept in all layers together, of rows [groups] per group."""
    return sum(count * group.size for count, group in zip(rows, groups, strict=True))


def even_rows(groups: Groups, budget: int | None) -> tuple[int, ...]:
    """Spread a budget over the groups as evenly as it goes; None: each group's least.

    A budget is a ceiling: what is too little for one more expert in any group stays unspent.

    :param budget: experts kept in all layers together
    :returns: rows E' of each group
    """
    return spread_rows(groups, budget, lambda _, rows: -rows)


def spread_rows(
    groups: Groups, budget: int | None, worth: Callable[[int, int], float]
) -> tuple[int, ...]:
    """Give one step after the other to the group for which it is worth most, the first of equals.

    :param budget: experts kept in all layers together; None gives each group its least
    :param worth: (group, rows it has so far) -> what one step more is worth
    :returns: rows E' of each group
    """
    rows = [group.least for group in groups]
    if budget is None:
        return tuple(rows)
    left = budget - total_kept(rows, groups)
    while True:
        open_ = [g for g, group in enumerate(groups) if rows[g] < group.most and group.cost <= left]
        if not open_:
            return tuple(rows)
        chosen = max(open_, key=lambda g: worth(g, rows[g]))
        rows[chosen] += groups[chosen].step
        left -= groups[chosen].cost


def fits(rows: Sequence[int], groups: Groups, budget: int | None) -> bool:
    """Whether so many rows per group keep to the groups' bounds and to the budget."""
    return (
        len(rows) == len(groups)
        and all(
            g.least <= count <= g.most and count % g.step == 0
            for count, g in zip(rows, groups, strict=True)
        )
        and (budget is None or total_kept(rows, groups) <= budget)
    )


def by_layer(values: Sequence[tuple[int, ...]], groups: Groups) -> Mapping[int, tuple[int, ...]]:
    """Give every layer what its group has."""
    pairs = zip(groups, values, strict=True)
    return {layer: value for group, value in pairs for layer in group.layers}
