"""How many experts a recipe keeps, where it says so by a ratio or wants a friendly number."""

from __future__ import annotations

from collections.abc import Mapping

from offline.compress.recipe.recipe import CompressRecipe
from offline.lint.friendly import friendly
from offline.maps.map_space import Space
from offline.maps.moe_shape import MoeShape
from offline.maps.router_groups import RouterGroups
from offline.plan.recipe import PlanRecipe
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError


def sized(recipe: CompressRecipe) -> tuple[CompressRecipe, tuple[str, ...]]:
    """Return the recipe with ``keep`` in place of ``ratio`` and ``friendly``.

    :returns: and how what is kept differs from what was asked for, to be said
    :raises PruneError: if layers would keep different numbers
    """
    method = recipe.method
    if method.ratio is None and not method.friendly:
        return recipe, ()
    base = Checkpoint.open(recipe.base.model)
    keep, changes = method.keep, tuple[str, ...]()
    if method.ratio is not None:
        router = RouterGroups.of(base.layout, base.config)
        router = RouterGroups() if method.substitutes else router
        counts = PlanRecipe(ratio=method.ratio).counts(base.expert_counts(), router)
        assert isinstance(counts, dict)
        keep = _one_count("--ratio", counts)
    if method.friendly:
        shape, active = MoeShape.of(base), method.active
        space = Space.of(shape, keep, active, substitutes=method.substitutes)
        rounded, changes = friendly(space, space.even_counts())
        keep = _one_count("--friendly", rounded.even_counts())
    kept = method.model_copy(update={"keep": keep, "ratio": None, "friendly": False})
    return recipe.model_copy(update={"method": kept}), changes


def _one_count(flag: str, counts: Mapping[int, int]) -> int:
    found = set(counts.values())
    if len(found) > 1:
        raise PruneError(
            f"{flag}: layers of different sizes keep different counts",
            hint=f"use vmprune plan {flag}",
        )
    return found.pop()
