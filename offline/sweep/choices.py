"""From one set of scores to the maps of all choices, the smallest first."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from offline.build.build import plan_build
from offline.calibration.scores import Scores
from offline.maps.moe_shape import MoeShape
from offline.plan.plan import plan
from offline.plan.recipe import PlanRecipe
from offline.sweep.settings import SweepSettings, words
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import DataIdentity
from vllm_moe_prune.routing_map import RoutingMap


@dataclass(frozen=True, slots=True)
class Choice:
    """A map with the settings that make it, and what building it would write.

    ``experts`` are those of all layers together, ``active`` the mean per token of the layers.
    """

    name: str
    recipe: PlanRecipe
    routing_map: RoutingMap
    num_bytes: int

    @property
    def experts(self) -> int:
        """Experts that are left, in all layers together."""
        return sum(layer.num_kept for layer in self.routing_map.layers)

    @property
    def active(self) -> float:
        """Experts per token, mean of the layers."""
        return fmean(layer.top_k for layer in self.routing_map.layers)

    @property
    def size(self) -> tuple[int, float]:
        """What choices of one size have in common."""
        return self.experts, self.active


@dataclass(frozen=True, slots=True)
class Choices:
    """All choices that can be, and why others cannot."""

    found: tuple[Choice, ...]
    skipped: Mapping[str, str]


def choices_of(
    settings: SweepSettings, scores: Scores, base: Checkpoint, source: DataIdentity
) -> Choices:
    """Plan every combination; of equal maps only the first is kept.

    :param source: which scores these are, for the maps' provenance
    :raises PruneError: if none can be
    """
    found: dict[str, Choice] = {}
    skipped: dict[str, str] = {}
    for name, recipe in recipes_of(settings, scores.shape).items():
        try:
            routing_map = plan(scores, recipe, source).routing_map
            size = plan_build(base, routing_map, mtp=settings.mtp).num_bytes
        except PruneError as error:
            skipped[name] = error.message
            continue
        twin = found.setdefault(routing_map.digest(), Choice(name, recipe, routing_map, size))
        if twin.name != name:
            skipped[name] = f"the same map as {twin.name}"
    if not found:
        name, why = next(iter(skipped.items()))
        raise PruneError(f"no choice can be: {name}: {why}")
    ordered = sorted(found.values(), key=lambda one: (one.num_bytes, one.active, one.name))
    return Choices(tuple(ordered), skipped)


def recipes_of(settings: SweepSettings, shape: MoeShape) -> dict[str, PlanRecipe]:
    """Return the settings of every combination by a short name for each."""
    return {_name(recipe, shape): recipe for recipe in _recipes(settings, shape)}


def _recipes(settings: SweepSettings, shape: MoeShape) -> Iterator[PlanRecipe]:
    for ratio in settings.dropped:
        for top_k in settings.active:
            common = {"domains": settings.domains, "top_k": None if top_k is None else str(top_k)}
            for kind in words(settings.merges):
                yield PlanRecipe.of({**common, "merge": kind, "ratio": ratio})
            for router in words(settings.routers):
                for rule in settings.rules:
                    for spread in words(settings.spreads):
                        how = _spread(ratio, spread, shape)
                        own = {"criterion": rule.word, "router": router}
                        yield PlanRecipe.of({**common, **how, **own})


def _spread(ratio: float, spread: str, shape: MoeShape) -> dict[str, float | int]:
    """Return the flag that drops a share: of every layer, or as many of all together."""
    if spread == "uniform":
        return {"ratio": ratio}
    counts = PlanRecipe(ratio=ratio).counts(shape.num_experts, shape.router_groups)
    assert isinstance(counts, dict)
    return {"budget": sum(counts.values())}


def _name(recipe: PlanRecipe, shape: MoeShape) -> str:
    """Say in a word what a choice is: ``min-ean-50``, ``min-ean-budget-16``, ``...-top-1``."""
    what = recipe.criterion if recipe.merge is None else f"merge-{recipe.merge.partition('-')[0]}"
    if recipe.ratio is not None:
        size = f"{100 * recipe.ratio:.4g}"
    else:
        total = sum(shape.num_experts.values())
        assert recipe.budget is not None
        size = f"budget-{recipe.budget}-of-{total}"
    parts = [what, size]
    if recipe.top_k is not None:
        parts.append(f"top-{recipe.top_k}")
    if recipe.router in ("sliced", "mapped"):
        parts.append(recipe.router)
    return "-".join(parts)


def build_command(model: str, folder: Path, name: str, settings: SweepSettings) -> str:
    """Return the command that builds a choice from the map that the sweep keeps of it."""
    parts = ["vmprune", "build", "--model", model, "--map", str(folder / "maps" / name)]
    parts += ["--mtp", settings.mtp] if settings.mtp else []
    return shlex.join([*parts, "--out", name])
