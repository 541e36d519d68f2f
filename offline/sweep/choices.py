"""From one set of scores to the maps of all choices, the smallest first."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import JsonValue

from offline.build.build import plan_build
from offline.calibration.scores import Scores
from offline.maps.moe_shape import MoeShape
from offline.maps.router_groups import RouterGroups
from offline.plan.plan import plan
from offline.plan.recipe import PlanRecipe
from offline.results.sensitivity import Sensitivity
from offline.sweep.settings import SweepSettings, words
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import DataIdentity
from vllm_moe_prune.routing_map import RoutingMap


@dataclass(frozen=True, slots=True)
class Choice:
    """A map with the flags of `vmprune plan` that make it (or the candidates of the search that
    found it), and what building it would write.

    ``experts`` are those of all layers together, ``active`` the mean per token of the layers.
    """

    name: str
    plan: Mapping[str, JsonValue]
    routing_map: RoutingMap
    weight_bytes: int

    @property
    def num_bytes(self) -> int:
        """Bytes on disk: of weights, and of the vectors that stand for experts."""
        return self.weight_bytes + self.routing_map.vector_bytes

    @property
    def experts(self) -> int:
        """Experts that are left, in all layers together."""
        return sum(layer.num_kept for layer in self.routing_map.layers)

    @property
    def active(self) -> float:
        """Experts per token, mean of the layers."""
        return fmean(layer.top_k for layer in self.routing_map.layers)

    @property
    def size(self) -> tuple[int, float, bool]:
        """What choices of one size have in common; vectors take memory and the plugin."""
        return self.experts, self.active, self.routing_map.substitutes

    @property
    def kind(self) -> object:
        """What an engine may refuse: all choices of a kind or none."""
        layers = self.routing_map.layers
        merged = any(layer.experts.kept is None for layer in layers)
        routers = frozenset((layer.router, layer.top_k) for layer in layers)
        return merged, self.routing_map.substitutes, routers


@dataclass(frozen=True, slots=True)
class Choices:
    """All choices that can be of a model, the smallest first, and why others cannot."""

    shape: MoeShape
    found: tuple[Choice, ...]
    skipped: Mapping[str, str]

    def with_one(self, choice: Choice) -> Choices:
        """Return them with one more in its place."""
        return replace(self, found=_ordered((*self.found, choice)))

    def that(self, can: Callable[[RoutingMap], object]) -> Choices:
        """Return the choices of those kinds of which one can be.

        :param can: raises PruneError where a map cannot be; asked of one of each kind, as opening
            a large base takes seconds
        :raises PruneError: of the first one, if none can be
        """
        errors: dict[object, PruneError | None] = {}
        for one in self.found:
            if one.kind in errors:
                continue
            errors[one.kind] = None
            try:
                can(one.routing_map)
            except PruneError as error:
                errors[one.kind] = error
        refused = {one.name: why for one in self.found if (why := errors[one.kind])}
        if len(refused) == len(self.found):
            raise next(iter(refused.values()))
        left = tuple(one for one in self.found if one.name not in refused)
        skipped = {**self.skipped, **{name: why.message for name, why in refused.items()}}
        return replace(self, found=left, skipped=skipped)


def choices_of(
    settings: SweepSettings,
    scores: Scores,
    base: Checkpoint,
    source: DataIdentity,
    measured: Mapping[str, Sensitivity] | None = None,
) -> Choices:
    """Plan every combination; of equal maps only the first is kept.

    :param source: which scores these are, for the maps' provenance
    :param measured: by folder, what layers lose, for the spread ``sensitivity``
    :raises PruneError: if none can be
    """
    found: dict[str, Choice] = {}
    skipped: dict[str, str] = {}
    for name, (recipe, spread) in recipes_of(settings, scores.shape).items():
        told = recipe.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        losses: Sensitivity | None = None
        try:
            if spread == "sensitivity":
                told["sensitivity"], losses = _measured(measured or {}, scores, recipe)
            routing_map = plan(scores, recipe, source, sensitivity=losses).routing_map
            size = plan_build(base, routing_map, mtp=settings.mtp).num_bytes
        except PruneError as error:
            skipped[name] = error.message
            continue
        choice = Choice(name, told, routing_map, size)
        twin = found.setdefault(routing_map.digest(), choice)
        if twin.name != name:
            skipped[name] = f"the same map as {twin.name}"
    if not found and not skipped:
        raise PruneError("no choice is asked for", hint="give --criteria, --ratios and --fates")
    if not found:
        name, why = next(iter(skipped.items()))
        raise PruneError(f"no choice can be: {name}: {why}")
    return Choices(scores.shape, _ordered(found.values()), skipped)


def _ordered(choices: Iterable[Choice]) -> tuple[Choice, ...]:
    return tuple(sorted(choices, key=lambda one: (one.num_bytes, one.active, one.name)))


def _measured(
    measured: Mapping[str, Sensitivity], scores: Scores, recipe: PlanRecipe
) -> tuple[str, Sensitivity]:
    """Return the measurement of what a recipe chooses, and its folder.

    :raises PruneError: if there is none; with a single one saying why not that
    """
    errors = []
    for folder, one in measured.items():
        try:
            one.losses(scores.shape.base, recipe.choice)
        except PruneError as error:
            errors.append(error)
            continue
        return folder, one
    if len(errors) == 1:
        raise errors[0]
    raise PruneError("none of the sensitivities was measured with its settings")


def recipes_of(settings: SweepSettings, shape: MoeShape) -> dict[str, tuple[PlanRecipe, str]]:
    """Return the settings of every combination, and how its experts are spread over the layers, by
    a short name for each."""
    return {name: (recipe, spread) for name, recipe, spread in _recipes(settings, shape)}


def _recipes(settings: SweepSettings, shape: MoeShape) -> Iterator[tuple[str, PlanRecipe, str]]:
    ways = itertools.product(settings.dropped, settings.active, _fates(settings))
    for ratio, top_k, fate in ways:
        common = {"domains": settings.domains, "top_k": None if top_k is None else str(top_k)}
        for rule, spread in itertools.product(settings.rules, words(settings.spreads)):
            how = _spread(ratio, spread, shape, substitute="substitute" in fate)
            # Of what is merged it only spreads a budget.
            decides = {} if "merge" in fate and "ratio" in how else {"criterion": rule.word}
            recipe = PlanRecipe.of({**common, **fate, **how, **decides})
            yield _name(recipe, spread, shape), recipe, spread


def _fates(settings: SweepSettings) -> Iterator[dict[str, Any]]:
    """Give the flags that say what becomes of experts that are not kept, and of their router."""
    routers = words(settings.routers)
    for kind in words(settings.merges):
        for router in routers:  # one that is sliced can add no scores up
            merging = "dominant" if router == "sliced" else "sum"
            yield {"merge": kind, "router": router, "merge_router": merging}
    for fate in words(settings.fates):
        if fate == "substituted":  # all stay in the router
            yield {"substitute": True}
            continue
        yield from ({"router": router} for router in routers)


def _spread(
    ratio: float, spread: str, shape: MoeShape, *, substitute: bool
) -> dict[str, float | int]:
    """Return the flags that drop a share: of every layer, or as many of all together."""
    if spread == "uniform":
        return {"ratio": ratio}
    router = RouterGroups() if substitute else shape.router_groups
    counts = PlanRecipe(ratio=ratio).counts(shape.num_experts, router)
    assert isinstance(counts, dict)
    return {"budget": sum(counts.values())}


def _name(recipe: PlanRecipe, spread: str, shape: MoeShape) -> str:
    """Say in a word what a choice is: ``min-ean-50``, ``min-ean-budget-16-of-32``, ``...-top-1``.

    What is merged by as much in every layer has no criterion, and one name for all.
    """
    parts = [] if recipe.merge is None else ["merge", recipe.merge.partition("-")[0]]
    if recipe.merge is None or recipe.budget is not None:
        parts.append(recipe.criterion)
    if recipe.ratio is not None:
        parts.append(f"{100 * recipe.ratio:.4g}")
    else:
        parts.append(f"{spread}-{recipe.budget}-of-{sum(shape.num_experts.values())}")
    parts += ["substituted"] if recipe.substitute else []
    parts += [] if recipe.top_k is None else [f"top-{recipe.top_k}"]
    parts += [recipe.router] if recipe.router in ("sliced", "mapped") else []
    return "-".join(parts)


def build_command(model: str, folder: Path, name: str, settings: SweepSettings) -> str:
    """Return the command that builds a choice from the map that the sweep keeps of it."""
    parts = ["vmprune", "build", "--model", model, "--map", str(folder / "maps" / name)]
    parts += ["--mtp", settings.mtp] if settings.mtp else []
    return shlex.join([*parts, "--out", name])
