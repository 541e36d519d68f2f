"""`friendly`: the same plan with numbers of experts that serve well."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from offline.lint.counts import nearest_friendly, spans
from offline.maps.map_space import Space
from vllm_moe_prune.errors import PruneError


def friendly(
    space: Space,
    counts: Mapping[int, int],
    *,
    protected: Mapping[int, Collection[int]] | None = None,
    expert_parallel: int | None = None,
) -> tuple[Space, tuple[str, ...]]:
    """Round what each layer keeps to the nearest kernel-friendly number (`FUSED_TOPK`).

    Never below what the router needs, and a multiple of its groups. With a budget it goes down
    where it can.

    :param counts: decoder layer -> E' before rounding
    :param protected: decoder layer -> experts that must stay
    :param expert_parallel: number of ranks that are to share the experts
    :returns: the space with these counts, and a line for people about each change
    :raises PruneError: if the budget is too small for friendly counts
    """
    router, is_budget = space.router_groups, space.budget is not None
    divisors = (router.count, expert_parallel or 1)
    keep = {}
    for layer, experts in space.num_experts.items():
        stay = (protected or {}).get(layer, ())
        room = max(len(set(part).intersection(stay)) for part in router.parts(experts))
        least = max(router.least(space.top_k[layer]), room * router.count)
        least = max(least, space.floor if is_budget else 1)
        keep[layer] = nearest_friendly(
            counts[layer], least, experts, divisors=divisors, only_down=is_budget
        )
    total = sum(keep.values())
    if space.budget is not None and total > space.budget:
        raise PruneError(
            f"--friendly: with the nearest friendly counts the layers keep {total} experts, more "
            f"than --budget {space.budget}",
            hint=f"--budget {total}, or leave out --friendly",
        )
    return replace(space, keep=keep, budget=None), _changes(counts, keep)


def _changes(before: Mapping[int, int], after: Mapping[int, int]) -> tuple[str, ...]:
    changed: dict[tuple[int, int], list[int]] = {}
    for layer, count in after.items():
        if count != before[layer]:
            changed.setdefault((before[layer], count), []).append(layer)
    return tuple(
        f"--friendly: {new} experts instead of {old} in {spans(layers)}"
        for (old, new), layers in changed.items()
    )
