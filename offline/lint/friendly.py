"""`friendly`: the same plan with numbers of experts that serve well."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from offline.lint.counts import friendly_counts, neighbours, spans, starts_on_blackwell
from offline.lint.fewest import fewest
from offline.maps.map_space import Space
from vllm_moe_prune.errors import PruneError


def friendly(
    space: Space,
    counts: Mapping[int, int],
    *,
    protected: Mapping[int, Collection[int]] | None = None,
    expert_parallel: int | None = None,
) -> tuple[Space, tuple[str, ...]]:
    """Round what each layer keeps to kernel-friendly numbers (`FUSED_TOPK`).

    Each to the next one below or above, such that all layers have as few different numbers as
    possible, which is also how often a server compiles and tunes its kernels; of equally few, to
    the nearest. Never below what the router needs, a multiple of its groups, and together not more
    than a budget. Where all layers can, they avoid what Blackwell's default kernels refuse.

    :param counts: decoder layer -> E' before rounding
    :param protected: decoder layer -> experts that must stay
    :param expert_parallel: number of ranks that are to share the experts
    :returns: the space with these counts, and a line for people about each change
    :raises PruneError: if the budget is too small for friendly counts
    """
    router = space.router_groups
    divisors = (router.count, expert_parallel or 1)
    fit = {
        layer: friendly_counts(_least(space, layer, protected or {}), experts, divisors)
        for layer, experts in space.num_experts.items()
    }
    preferred = {
        layer: [n for n in several if starts_on_blackwell(n, space.top_k[layer])] or several
        for layer, several in fit.items()
    }
    for several in (preferred, fit):
        choices = {n: neighbours(count, several[n]) or (count,) for n, count in counts.items()}
        if keep := fewest(counts, choices, space.budget):
            return replace(space, keep=keep, budget=None), _changes(counts, keep)
    total = sum(min(several) for several in choices.values())
    raise PruneError(
        f"--friendly: with the nearest friendly counts the layers keep {total} experts, more "
        f"than --budget {space.budget}",
        hint=f"--budget {total}, or leave out --friendly",
    )


def _least(space: Space, layer: int, protected: Mapping[int, Collection[int]]) -> int:
    """Return the fewest experts that a layer may keep."""
    router, stay = space.router_groups, protected.get(layer, ())
    parts = router.parts(space.num_experts[layer])
    room = max(len(set(part).intersection(stay)) for part in parts) * router.count
    floor = 1 if space.budget is None else space.floor
    return max(router.least(space.top_k[layer]), room, floor)


def _changes(before: Mapping[int, int], after: Mapping[int, int]) -> tuple[str, ...]:
    changed: dict[tuple[int, int], list[int]] = {}
    for layer, count in after.items():
        if count != before[layer]:
            changed.setdefault((before[layer], count), []).append(layer)
    return tuple(
        f"--friendly: {new} experts instead of {old} in {spans(layers)}"
        for (old, new), layers in changed.items()
    )
