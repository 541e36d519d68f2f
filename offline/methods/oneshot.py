"""From the order in which experts go to the experts that are kept, within a space's bounds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from offline.criteria.order import DropOrder, order_of
from offline.methods.genome import Kept
from offline.methods.groups import DepthGroup, Groups, by_layer, spread_rows, total_kept
from offline.methods.space import Space
from vllm_moe_prune.errors import PruneError


def last_dropped(
    space: Space,
    orders: Mapping[int, DropOrder],
    groups: Groups | None = None,
    protected: Mapping[int, Collection[int]] | None = None,
) -> dict[int, Kept]:
    """Keep, in each layer, the experts that go last.

    A budget for all layers together is handed out one expert at a time, to the layer whose best
    expert that is still dropped has the largest share of its layer's importance.

    :param orders: decoder layer -> order of its experts
    :param groups: keep the same experts within each, by the mean of its layers' shares; None:
        every layer on its own
    :param protected: decoder layer -> experts that stay whatever their place; without groups only
    :raises PruneError: naming the layer in which the protected experts do not fit
    """
    assert groups is None or not protected
    safe = {layer: set((protected or {}).get(layer, ())) for layer in space.layers}
    groups = space.groups() if groups is None else groups
    groups = tuple(_with_room(group, safe[group.layers[0]]) for group in groups)
    _check_budget(space, groups)
    shared = [_shared([orders[layer] for layer in group.layers]) for group in groups]
    ranked = [
        [e for e in reversed(order.experts) if e not in safe[group.layers[0]]]
        for order, group in zip(shared, groups, strict=True)
    ]

    def worth(number: int, rows: int) -> float:
        """What the best expert that is still dropped counts for."""
        taken = rows - len(safe[groups[number].layers[0]])
        return float(shared[number].importance[ranked[number][taken]])

    rows = spread_rows(groups, space.budget, worth)
    kept = [
        order.kept(count, safe[group.layers[0]])
        for order, count, group in zip(shared, rows, groups, strict=True)
    ]
    return dict(by_layer(kept, groups))


def _shared(orders: list[DropOrder]) -> DropOrder:
    """Return one order for the layers of a group; of equals the lower id stays."""
    if len(orders) == 1:
        return orders[0]
    shares = np.mean([order.importance for order in orders], axis=0)
    return order_of(shares, "min", np.zeros(len(shares), dtype=bool))


def _with_room(group: DepthGroup, protected: Collection[int]) -> DepthGroup:
    """Return the group with room for the protected experts in its least."""
    if len(protected) > group.most:
        raise PruneError(
            f"layer {group.layers[0]} keeps {group.most} experts, but {len(protected)} of them are "
            f"protected: {', '.join(map(str, sorted(protected)))}",
            hint="keep more experts there, or protect fewer",
        )
    return replace(group, least=max(group.least, len(protected)))


def _check_budget(space: Space, groups: Groups) -> None:
    least = total_kept([group.least for group in groups], groups)
    if space.budget is not None and least > space.budget:
        raise PruneError(
            f"--budget {space.budget}: with the protected experts the layers keep at least {least}",
            hint=f"--budget {least} or more, or protect fewer",
        )
