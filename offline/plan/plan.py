"""From saved scores to a routing map, in seconds and without the model."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import JsonValue

from offline.calibration.scores import Scores, tokens_seen
from offline.calibration.statistics import Evidence, mean_outputs
from offline.lint.friendly import friendly
from offline.lint.lint import Finding, ModelFacts, Target, lint
from offline.maps.map_space import Space
from offline.maps.moe_shape import MoeShape
from offline.maps.router_groups import RouterGroups
from offline.methods.keep_last import keep_last
from offline.methods.merging import merged_map
from offline.plan.protection import (
    Protected,
    check_whole,
    parse_protected,
    super_experts,
    union_of,
    without,
)
from offline.plan.recipe import PlanRecipe
from offline.results.sensitivity import Losses, Sensitivity
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import DataIdentity, Provenance
from vllm_moe_prune.routing_map import RoutingMap


@dataclass(frozen=True, slots=True)
class Plan:
    """A routing map with what a reader of it should know."""

    routing_map: RoutingMap
    evidence: Evidence
    protected: Protected  # both that were named and the outliers
    outliers: Protected
    incomplete: Protected = field(default_factory=dict)  # experts that lack a tensor
    rounded: tuple[str, ...] = ()  # how the counts differ from what was asked for, and why
    findings: tuple[Finding, ...] = ()  # about serving it
    by_importance: bool = False  # a budget went by the criterion's own shares

    @property
    def unseen(self) -> Protected:
        """Decoder layer -> experts that saw no token of the blend."""
        found = {layer: (one.seen.counts == 0).nonzero()[0] for layer, one in self.evidence.items()}
        return {layer: tuple(ids.tolist()) for layer, ids in found.items() if len(ids)}

    @property
    def incomplete_kept(self) -> Protected:
        """Decoder layer -> experts that lack a tensor and stay, which no build will do."""
        entries, kept = self.routing_map.by_layer(), dict[int, tuple[int, ...]]()
        for layer, ids in self.incomplete.items():
            matrix = self.routing_map.expert_matrix(entries[layer])
            kept[layer] = tuple(i for i in ids if matrix[:, i].any())
        return {layer: ids for layer, ids in kept.items() if ids}


def plan(
    scores: Scores,
    recipe: PlanRecipe,
    source: DataIdentity | None = None,
    incomplete: Protected | None = None,
    sensitivity: Sensitivity | None = None,
) -> Plan:
    """Choose experts by a criterion and make their routing map.

    Experts that lack a tensor go before all others, whatever the criterion says of them.

    :param source: which scores these are, for the map's provenance
    :param incomplete: decoder layer -> experts that lack a tensor in the checkpoint that is to be
        built from; the scored one if not given
    :param sensitivity: what each layer loses with fewer experts, which a budget then goes by
    :raises PruneError: if the scores do not hold what the recipe needs, or it cannot be kept to;
        if the sensitivity is of another model or of other settings
    """
    rule, evidence = recipe.rule, scores.evidence(recipe.blend)
    space = space_of(scores.shape, recipe)
    outliers = (
        super_experts(evidence, recipe.outlier_percentile, recipe.outlier_share)
        if recipe.protect_outliers
        else {}
    )
    named = parse_protected(recipe.protect, space.num_experts) if recipe.protect else {}
    lacking = dict(scores.shape.incomplete if incomplete is None else incomplete)
    check_whole(named, lacking)
    outliers = without(outliers, lacking)
    protected = union_of(named, outliers)
    orders = {
        n: rule.order(one, protected.get(n, ())).beginning_with(lacking.get(n, ()))
        for n, one in evidence.items()
    }
    losses = _losses(scores, recipe, sensitivity)
    kept = keep_last(space, orders, protected=protected, losses=losses)
    rounded = _rounded(space, recipe)
    if recipe.friendly:
        counts = {layer: len(ids) for layer, ids in kept.items()}
        space, changes = friendly(
            space, counts, protected=protected, expert_parallel=recipe.serve_ep
        )
        kept = keep_last(space, orders, protected=protected)
        rounded += changes
    provenance = _provenance(scores, recipe, protected, lacking, source, sensitivity)
    seen = tokens_seen(scores, recipe.blend)
    if recipe.merge is None:
        outputs = mean_outputs(evidence) if recipe.substitute else None
        routing_map = space.routing_map(kept, provenance, seen, outputs)
    else:
        counts = {layer: len(ids) for layer, ids in kept.items()}
        kind, router = recipe.merge, recipe.merge_router
        routing_map = merged_map(space, evidence, counts, kind, router, provenance, seen)
    findings = _findings(scores, recipe, routing_map)
    by_importance = recipe.budget is not None and losses is None
    return Plan(
        routing_map, evidence, protected, outliers, lacking, rounded, findings, by_importance
    )


def _losses(scores: Scores, recipe: PlanRecipe, sensitivity: Sensitivity | None) -> Losses | None:
    """Return what a budget is to go by; None where that is the criterion's own importance."""
    if sensitivity is None:
        return None
    if recipe.budget is None:
        raise PruneError("--sensitivity changes nothing without --budget")
    return sensitivity.losses(scores.shape.base, recipe.choice)


def space_of(shape: MoeShape, recipe: PlanRecipe) -> Space:
    """Say what a recipe keeps of a model.

    :raises PruneError: if the model cannot keep or activate so many
    """
    router = RouterGroups() if recipe.substitute else shape.router_groups
    keep = recipe.counts(shape.num_experts, router)
    return Space.of(
        shape,
        keep,
        recipe.top_k or None,
        budget=recipe.budget,
        floor=recipe.floor,
        router=recipe.router,
        substitutes=recipe.substitute,
    )


def _rounded(space: Space, recipe: PlanRecipe) -> tuple[str, ...]:
    """Say where the groups that a router chooses among take less, or keep more, than asked for."""
    count = space.router_groups.count
    if recipe.budget is not None and (rest := recipe.budget % count):
        text = f"--budget {recipe.budget}: {recipe.budget - rest} experts at most"
    elif recipe.ratio is not None and space.keep != recipe.counts(space.num_experts):
        kept = "/".join(map(str, sorted(set(space.even_counts().values()))))
        text = f"--ratio {recipe.ratio}: {kept} experts per layer"
    else:
        return ()
    return (f"{text}, so that the router's {count} groups keep equally many",)


def _findings(scores: Scores, recipe: PlanRecipe, routing_map: RoutingMap) -> tuple[Finding, ...]:
    layers = next(iter(scores.domains.values()))
    hidden = next(iter(layers.values())).mean.shape[1]
    shape = scores.shape
    facts = ModelFacts(hidden=hidden, topk_group=shape.topk_group, slices=shape.slices)
    return tuple(lint(routing_map, facts, Target(recipe.serve_tp, recipe.serve_ep)))


def _provenance(
    scores: Scores,
    recipe: PlanRecipe,
    protected: Protected,
    incomplete: Protected,
    source: DataIdentity | None,
    sensitivity: Sensitivity | None,
) -> Provenance:
    told = scores.provenance.settings
    measured = () if sensitivity is None else (sensitivity.identity,)
    return Provenance.now(
        "merge" if recipe.merge else "substitute" if recipe.substitute else "oneshot",
        settings={
            **{name: told[name] for name in ("base_model", "base_commit") if name in told},
            **recipe.model_dump(mode="json", exclude_none=True),
            "criterion": recipe.rule.word,
            "protected": _written(protected),
            **({"incomplete": _written(incomplete)} if incomplete else {}),
            "scores": {"made": scores.provenance.created, **told},
        },
        data=(*scores.provenance.data, *([source] if source else ()), *measured),
    )


def _written(experts: Protected) -> dict[str, JsonValue]:
    return {str(layer): list[JsonValue](ids) for layer, ids in experts.items()}
