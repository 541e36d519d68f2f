"""One-shot methods: what a search has to beat, and what its first generation may begin with.

Source: EEP (arXiv 2407.00945), appendix A.2. Each keeps a set of experts by one look at the base.
Where a global budget is to be spread, the layers (or groups) whose experts score highest get it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from offline.criteria.order import order_of
from offline.engines.base import ExpertUse
from offline.maps.depth_groups import Groups, by_layer, even_rows
from offline.maps.genome import Genome
from offline.maps.map_entries import kept_genome
from offline.maps.map_space import Kept, Space
from offline.methods.keep_last import keep_last
from vllm_moe_prune.errors import PruneError

# decoder layer -> subset that is kept -> how far the layer's output is from the whole layer's
Discrepancies = Mapping[int, Mapping[Kept, float]]
Need = Literal["use", "discrepancies"]
T = TypeVar("T")


def random_kept(space: Space, rng: random.Random) -> dict[int, Kept]:
    """Keep a uniformly random set of experts in every layer; a budget is spread evenly."""
    counts = space.even_counts()
    return {
        layer: _sample(space, experts, counts[layer], rng)
        for layer, experts in space.num_experts.items()
    }


def _sample(space: Space, experts: int, count: int, rng: random.Random) -> Kept:
    """Draw ``count`` of the experts, equally many in every router group."""
    parts = space.router_groups.parts(experts)
    return tuple(sorted(i for part in parts for i in rng.sample(part, count // len(parts))))


def most_used(
    space: Space, usage: Mapping[int, Sequence[int]], groups: Groups | None = None
) -> dict[int, Kept]:
    """Keep the experts that the most tokens were routed to (EEP's Frequency; `min-euf`).

    :param usage: decoder layer -> tokens routed to each expert, [E]; ties keep the lower id
    :param groups: keep the same experts within each, by the sum over its layers; None: every
        layer on its own
    """
    return _highest(space, usage, groups)


def soft_activation(
    space: Space, scores: Mapping[int, Sequence[float]], groups: Groups | None = None
) -> dict[int, Kept]:
    """Keep the experts with the highest router score, summed over all tokens.

    :param scores: decoder layer -> accumulated score of each expert, [E]
    :param groups: as `most_used`
    """
    return _highest(space, scores, groups)


def naee(
    space: Space, discrepancies: Discrepancies, groups: Groups | None = None
) -> dict[int, Kept]:
    """Keep, in each layer, the subset whose output is nearest to the whole layer's (NAEE).

    NAEE compares subsets of one size, so a budget is spread evenly (`Space.even_counts`).

    :param discrepancies: of all subsets of a layer, or of many; ties keep the first
    :param groups: as `most_used`; the subsets must be the same for all layers of a group
    """
    groups = space.groups() if groups is None else groups
    chosen = []
    for group, rows in zip(groups, even_rows(groups, space.budget), strict=True):
        each = [discrepancies[layer] for layer in group.layers]
        subsets = [k for k in each[0] if space.router_groups.are_balanced(k, group.num_experts)]
        if not subsets:
            raise PruneError(
                f"naee: no subset that was measured keeps equally many experts in each of the "
                f"{space.shape.num_groups} groups that the router chooses among",
                hint="use another method, such as frequency",
            )
        total = {kept: math.fsum(layer[kept] for layer in each) for kept in subsets}
        assert all(len(kept) == rows for kept in total), "subsets of another size were measured"
        nearest = min(total, key=total.__getitem__)
        chosen.append(tuple(sorted(nearest)))
    return dict(by_layer(chosen, groups))


@dataclass(frozen=True, slots=True)
class OneShotInput:
    """What was seen of the base; a one-shot method says which of it it `needs`."""

    use: Mapping[int, ExpertUse] | None = None
    discrepancies: Discrepancies | None = None


@dataclass(frozen=True, slots=True)
class OneShot:
    """A one-shot method: what it keeps (groups None: each layer apart), and from what."""

    keep: Callable[[Space, OneShotInput, random.Random, Groups | None], dict[int, Kept]]
    needs: frozenset[Need] = frozenset()


def _random(
    space: Space, _: OneShotInput, rng: random.Random, groups: Groups | None
) -> dict[int, Kept]:
    if groups is None:
        return random_kept(space, rng)
    rows = even_rows(groups, space.budget)
    kept = [
        _sample(space, group.num_experts, count, rng)
        for group, count in zip(groups, rows, strict=True)
    ]
    return dict(by_layer(kept, groups))


def _frequency(
    space: Space, measured: OneShotInput, _: random.Random, groups: Groups | None
) -> dict[int, Kept]:
    use = _given(measured.use)
    return most_used(space, {n: layer.tokens.tolist() for n, layer in use.items()}, groups)


def _soft_activation(
    space: Space, measured: OneShotInput, _: random.Random, groups: Groups | None
) -> dict[int, Kept]:
    use = _given(measured.use)
    return soft_activation(space, {n: layer.scores.tolist() for n, layer in use.items()}, groups)


def _naee(
    space: Space, measured: OneShotInput, _: random.Random, groups: Groups | None
) -> dict[int, Kept]:
    return naee(space, _given(measured.discrepancies), groups)


ONE_SHOT: Mapping[str, OneShot] = {
    "random": OneShot(_random),
    "frequency": OneShot(_frequency, frozenset({"use"})),
    "soft_activation": OneShot(_soft_activation, frozenset({"use"})),
    "naee": OneShot(_naee, frozenset({"discrepancies"})),
}
BY_USE = ("frequency", "soft_activation")  # what searches begin with


def by_use(space: Space, usage: Mapping[int, ExpertUse], groups: Groups) -> list[Genome]:
    """Return what the methods `BY_USE` keep, to begin a search with.

    :param usage: decoder layer -> use of its experts on the tasks' search items
    """
    seen, rng = OneShotInput(usage), random.Random(0)  # they draw nothing from it
    return [kept_genome(ONE_SHOT[name].keep(space, seen, rng, groups), groups) for name in BY_USE]


def _given(measured: T | None) -> T:
    assert measured is not None, "the method needs what was not measured"
    return measured


def _highest(
    space: Space, scores: Mapping[int, Sequence[float]], groups: Groups | None
) -> dict[int, Kept]:
    """Keep the experts with the highest scores; ties keep the lower id."""
    orders = {}
    for layer, values in scores.items():
        row = np.asarray(values, np.float64)
        if not np.isfinite(row).all() or (row < 0).any():
            raise PruneError("an expert's score is negative or not finite")
        orders[layer] = order_of(row, "min", np.zeros(len(row), dtype=bool))
    return keep_last(space, orders, groups)
