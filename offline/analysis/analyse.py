"""Scores, and maybe those of the pruned model and a routing map, into an `Analysis`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from offline.analysis.co_activation import co_activation
from offline.analysis.rankings import Dropped, changes, overlap, rules_of
from offline.analysis.specialisation import domain_use
from offline.analysis.subset import only
from offline.analysis.use import use_of
from offline.calibration.statistics import Evidence
from offline.results.analysis import Analysis, CoActivation, DomainUse, LayerFate
from offline.results.balance import shares
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import DataIdentity, Provenance
from vllm_moe_prune.routing_map import RoutingMap

if TYPE_CHECKING:
    from offline.calibration.scores import Scores

THE_MAP = "the map"  # among the criteria, what the given routing map drops


@dataclass(frozen=True, slots=True)
class After:
    """What was seen of the pruned model's experts, and which of the base's they are.

    ``survivors`` is None where experts were merged: then nothing of the base's lines up with them.
    """

    evidence: Evidence
    survivors: Mapping[int, tuple[int, ...]] | None

    def ids(self, layer: int) -> tuple[int, ...] | None:
        """Return the base's ids of a layer's experts, if they can be told."""
        return None if self.survivors is None else self.survivors[layer]


def analyse(
    scores: Scores,
    *,
    domains: Mapping[str, float] | None = None,
    after: Scores | None = None,
    routing_map: RoutingMap | None = None,
    criteria: Sequence[str] | None = None,
    keep: int | None = None,
    layers: Sequence[int] | None = None,
    provenance: Provenance | None = None,
) -> Analysis:
    """Find all numbers that these inputs allow.

    :param domains: weights of a blend, see `Scores.evidence`
    :param after: scores of the pruned model on the same text
    :param routing_map: the map that pruned it, or that may
    :param criteria: words such as ``min-ean`` to compare; None: all that the scores allow
    :param keep: E' at which to compare them; None: what the map keeps, else half of a layer
    :param layers: whose co-activation matrix to give; None: the first, the middle and the last
    :raises PruneError: if these do not fit each other, or the scores do not hold what is asked for
    """
    base = scores.evidence(domains)
    _check_seen("--scores", base)
    if routing_map is not None:
        _check_map(routing_map, scores, base)
    pruned = None
    if after is not None:
        _same_text(scores.provenance.data, after.provenance.data)
        seen = after.evidence(domains)
        _check_seen("--after", seen)
        pruned = match_to_base(base, seen, routing_map)
    shown = [*base.values(), *(pruned.evidence.values() if pruned is not None else ())]
    rules = rules_of(criteria, shown)
    gone = None if routing_map is None else _gone(routing_map)
    counts = keep_of(base, keep, routing_map)
    named = {} if gone is None or keep is not None else {THE_MAP: gone}
    return Analysis(
        model_type=scores.shape.model_type,
        base=scores.shape.base,
        domains=None if domains is None else dict(domains),
        layers=tuple(use_of(shown) for shown in base.values()),
        after=()
        if pruned is None
        else tuple(use_of(e, pruned.ids(n)) for n, e in pruned.evidence.items()),
        by_domain=_by_domain(scores, base, domains),
        co_activation=_matrices(base, layers),
        fates=() if routing_map is None else fates(routing_map, base),
        overlap=overlap(rules, base, counts, named)
        if keep is not None or _drops(base, counts)
        else None,
        changes=()
        if pruned is None or pruned.survivors is None
        else changes(rules, base, pruned.evidence, pruned.survivors),
        provenance=provenance or Provenance.now("analyze", data=scores.provenance.data),
    )


def match_to_base(base: Evidence, after: Evidence, routing_map: RoutingMap | None) -> After:
    """Find out which experts of the base those of the pruned model are.

    Scores of a base with a map applied have the base's ids, and experts that were dropped saw no
    token; without the map, whatever saw none counts as dropped. Scores of a smaller checkpoint
    need the map that made it.

    :raises PruneError: if the layers or numbers of experts do not fit
    """
    if sorted(base) != sorted(after):
        raise PruneError("--after holds other layers than --scores", hint="score the same model")
    entries = routing_map.by_layer() if routing_map is not None else {}
    evidence, survivors = {}, {}
    merged = False
    for layer, shown in after.items():
        count, whole = shown.seen.num_experts, base[layer].seen.num_experts
        entry = entries.get(layer)
        kept = None if entry is None else entry.experts.kept
        if count == whole and (entry is None or kept is not None):
            used = tuple(int(expert) for expert in np.flatnonzero(shown.seen.counts > 0))
            survivors[layer] = tuple(sorted(used if kept is None else kept))
            evidence[layer] = only(shown, survivors[layer])
        elif entry is None:
            raise PruneError(
                f"--after has {count} experts in layer {layer}, --scores has {whole}",
                hint="add --map, which says which of them were kept",
            )
        elif count != entry.num_kept:
            raise PruneError(
                f"--after has {count} experts in layer {layer}, the map keeps {entry.num_kept}",
                hint="score the checkpoint that was built from this map",
            )
        else:
            evidence[layer] = shown
            merged = merged or kept is None
            survivors[layer] = kept or ()
    return After(evidence, None if merged else survivors)


def keep_of(base: Evidence, keep: int | None, routing_map: RoutingMap | None) -> dict[int, int]:
    """Return at which E' of each layer criteria are compared."""
    if keep is not None:
        return dict.fromkeys(base, keep)
    if routing_map is not None:
        return {entry.layer: entry.num_kept for entry in routing_map.layers}
    counts = {layer: (shown.seen.num_experts, shown.top_k) for layer, shown in base.items()}
    return {layer: max(experts // 2, top_k) for layer, (experts, top_k) in counts.items()}


def fates(routing_map: RoutingMap, base: Evidence) -> tuple[LayerFate, ...]:
    """Return what a map does to each layer."""
    found = []
    for entry in sorted(routing_map.layers, key=lambda entry: entry.layer):
        kept = entry.experts.kept
        share = shares(base[entry.layer].seen.counts)
        found.append(
            LayerFate(
                layer=entry.layer,
                num_kept=entry.num_kept,
                kept=kept,
                kept_share=None if kept is None else float(share[list(kept)].sum()),
            )
        )
    return tuple(found)


def _check_seen(flag: str, evidence: Evidence) -> None:
    for layer, shown in evidence.items():
        if not shown.seen.counts.any():
            raise PruneError(
                f"{flag}: layer {layer} saw no token",
                hint="give --domains that were scored, or score more text",
            )


def _drops(base: Evidence, keep: Mapping[int, int]) -> bool:
    return any(keep[layer] != shown.seen.num_experts for layer, shown in base.items())


def _gone(routing_map: RoutingMap) -> Dropped | None:
    """Return what a map drops; None if it merges."""
    if any(entry.experts.kept is None for entry in routing_map.layers):
        return None
    return frozenset(
        (entry.layer, expert)
        for entry in routing_map.layers
        for expert in set(range(entry.num_experts)) - set(entry.experts.kept or ())
    )


def _by_domain(
    scores: Scores, base: Evidence, domains: Mapping[str, float] | None
) -> tuple[DomainUse, ...]:
    names = [n for n in scores.domains if domains is None or domains.get(n, 0) > 0]
    if len(names) < 2:
        return ()
    return tuple(domain_use(n, {name: scores.domains[name][n] for name in names}) for n in base)


def _matrices(base: Evidence, layers: Sequence[int] | None) -> tuple[CoActivation, ...]:
    numbers = sorted(base)
    for layer in layers or ():
        if layer not in base:
            raise PruneError(
                f"--layers {layer}: no such layer in the scores",
                hint=f"layers {numbers[0]} to {numbers[-1]} have experts",
            )
    middle = numbers[len(numbers) // 2]
    wanted = {numbers[0], middle, numbers[-1]} if layers is None else set(layers)
    found = [co_activation(base[layer]) for layer in sorted(wanted)]
    return tuple(matrix for matrix in found if matrix is not None)


def _check_map(routing_map: RoutingMap, scores: Scores, base: Evidence) -> None:
    if not routing_map.base.matches(scores.shape.base):
        raise PruneError("the map and the scores are of different base models")
    for entry in routing_map.layers:
        shown = base.get(entry.layer)
        if shown is None or shown.seen.num_experts != entry.num_experts:
            raise PruneError(f"layer {entry.layer}: the map and the scores do not fit")
    if len(base) != len(routing_map.layers):
        raise PruneError("the map and the scores have different layers")


def _same_text(one: Sequence[DataIdentity], other: Sequence[DataIdentity]) -> None:
    known = {data.name: data.sha256 for data in one}
    for data in other:
        if known.get(data.name, data.sha256) != data.sha256:
            raise PruneError(
                f"--scores and --after saw different text of {data.name}",
                hint="score both with the same --calibration, --length, --sequences and --seed",
            )
