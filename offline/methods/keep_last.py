"""From the order in which experts go to the experts that are kept, within a space's bounds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from offline.calibration.statistics import Evidence
from offline.criteria.order import DropOrder, order_of
from offline.criteria.registry import Rule
from offline.maps.allocation import least_loss_rows
from offline.maps.depth_groups import DepthGroup, Groups, by_layer, spread_rows, total_kept
from offline.maps.genome import Kept
from offline.maps.map_space import Space
from offline.results.sensitivity import Losses
from vllm_moe_prune.errors import PruneError


def keep_last(
    space: Space,
    orders: Mapping[int, DropOrder],
    groups: Groups | None = None,
    protected: Mapping[int, Collection[int]] | None = None,
    losses: Losses | None = None,
) -> dict[int, Kept]:
    """Keep, in each layer, the experts that go last.

    A budget for all layers together is handed out one expert at a time, to the layer whose best
    expert that is still dropped has the largest share of its layer's importance; or with
    ``losses`` so that their sum over the layers is least. Where the router chooses groups first,
    each of them keeps its own last ones, equally many, and a step of the budget is one expert for
    each.

    :param orders: decoder layer -> order of its experts
    :param groups: keep the same experts within each, by the mean of its layers' shares; None:
        every layer on its own
    :param protected: decoder layer -> experts that stay whatever their place; without groups only
    :param losses: decoder layer -> its loss by the number of experts kept, [E + 1]
    :raises PruneError: naming the layer in which the protected experts do not fit
    """
    assert groups is None or not protected
    parts_each = space.router_groups.count
    safe = {layer: set((protected or {}).get(layer, ())) for layer in space.layers}
    groups = space.groups() if groups is None else groups
    groups = tuple(_with_room(space, group, safe[group.layers[0]]) for group in groups)
    _check_budget(space, groups)
    shared = [_shared([orders[layer] for layer in group.layers]) for group in groups]
    ranked = [
        _ranked(space, order, safe[group.layers[0]])
        for order, group in zip(shared, groups, strict=True)
    ]

    def worth(number: int, rows: int) -> float:
        """What the best expert that is still dropped counts for, in all router groups together."""
        at = rows // parts_each
        return float(sum(shared[number].importance[part[at]] for part in ranked[number]))

    if losses is None or space.budget is None:
        rows = spread_rows(groups, space.budget, worth)
    else:
        sums = [np.sum([losses[layer] for layer in group.layers], axis=0) for group in groups]
        rows = least_loss_rows(groups, space.budget, sums)
    kept = [
        tuple(sorted(expert for part in parts for expert in part[: count // parts_each]))
        for parts, count in zip(ranked, rows, strict=True)
    ]
    return dict(by_layer(kept, groups))


def _ranked(space: Space, order: DropOrder, protected: Collection[int]) -> list[list[int]]:
    """Return the experts of each router group, those that stay longest first."""
    first = [*protected, *(e for e in reversed(order.experts) if e not in protected)]
    parts = space.router_groups.parts(len(order.experts))
    return [[expert for expert in first if expert in part] for part in parts]


def _shared(orders: list[DropOrder]) -> DropOrder:
    """Return one order for the layers of a group; of equals the lower id stays."""
    if len(orders) == 1:
        return orders[0]
    shares = np.mean([order.importance for order in orders], axis=0)
    return order_of(shares, "min", np.zeros(len(shares), dtype=bool))


def _with_room(space: Space, group: DepthGroup, protected: Collection[int]) -> DepthGroup:
    """Return the group with room for the protected experts in its least."""
    router, layer = space.router_groups, group.layers[0]
    for number, part in enumerate(router.parts(group.num_experts)):
        inside, room = sorted(set(part).intersection(protected)), group.most // router.count
        if len(inside) > room:
            where = f"layer {layer}" + (f", router group {number}," if router.count > 1 else "")
            raise PruneError(
                f"{where} keeps {room} experts, but {len(inside)} of them are "
                f"protected: {', '.join(map(str, inside))}",
                hint="keep more experts there, or protect fewer",
            )
        group = replace(group, least=max(group.least, len(inside) * router.count))
    return group


def _check_budget(space: Space, groups: Groups) -> None:
    least = total_kept([group.least for group in groups], groups)
    if space.budget is not None and least > space.budget:
        raise PruneError(
            f"--budget {space.budget}: with the protected experts the layers keep at least {least}",
            hint=f"--budget {least} or more, or protect fewer",
        )


def keep_by_criterion(
    space: Space, evidence: Evidence, criterion: str, groups: Groups | None = None
) -> dict[int, Kept]:
    """Return what a criterion keeps of each layer of a space.

    :param criterion: a word such as `min-ean`
    :param groups: as `keep_last`
    :raises PruneError: as `Rule.parse` and `Rule.order`
    """
    rule = Rule.parse(criterion)
    return keep_last(space, {n: rule.order(evidence[n]) for n in space.layers}, groups)
