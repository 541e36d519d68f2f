"""Merging baselines: experts that resemble each other become one, and the file shrinks.

Two ways to find a layer's clusters, after HC-SMoE (arXiv 2410.08589) and M-SMoE (the merging half
of MC-SMoE, arXiv 2310.01334). They are *like* these, not the same:

* The papers leave the router with E outputs: top-k chooses among the E old experts, and what it
  chose is re-labelled, so that a token may meet one merged expert twice. A routing map acts on the
  scores before top-k (EEP, section 4.2): W_RM adds up the scores of a cluster's members, and top-k
  chooses k different merged experts.
* HC-SMoE looks at an expert's mean output over all calibration tokens; here it is over the tokens
  that were routed to it, which is all that a scoring pass computes.
* M-SMoE permutes each expert's neurons to match those of the dominant one before it averages, and
  spreads the dominant experts over the layers by usage. Here neurons stay where they are, and how
  many experts a layer keeps is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np

from offline.calibration.statistics import Evidence, Floats, LayerStatistics
from offline.maps.genome import Coefficients, Genome
from offline.maps.map_space import Space
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap

MergeKind = Literal["output-similarity", "router-similarity"]
MergeRouter = Literal["sum", "dominant"]
# A layer's experts in E' parts, none of them empty; each part and the parts themselves in order.
Clusters: TypeAlias = tuple[tuple[int, ...], ...]


def output_clusters(seen: LayerStatistics, count: int) -> Clusters:
    """Cluster by the cosine of mean outputs, average linkage (HC-SMoE-like).

    The outputs of an expert that saw no token are unknown: it joins the expert whose router row
    answers most like its own. Where fewer than ``count`` experts saw a token, the unseen ones
    with the highest router scores stay on their own.

    :param count: E', the number of clusters
    """
    known = [int(i) for i in np.flatnonzero(seen.counts > 0)]
    if len(known) <= count:
        unseen = [int(i) for i in np.argsort(-seen.scores, kind="stable") if i not in known]
        parts = [[expert] for expert in known + unseen[: count - len(known)]]
    else:
        groups = _average_linkage(1 - _cosines(seen.mean[known] @ seen.mean[known].T), count)
        parts = [[known[i] for i in group] for group in groups]
    return _joined(parts, seen)


def router_clusters(seen: LayerStatistics, count: int) -> Clusters:
    """Give every expert to that of the ``count`` most used whose router logits are most similar.

    M-SMoE-like: similarity is the cosine of two experts' logits over the calibration tokens. Equal
    use keeps the lower id.

    :param count: E', the number of clusters
    """
    dominant = np.argsort(-seen.counts, kind="stable")[:count]
    return _joined([[int(expert)] for expert in dominant], seen)


CLUSTERINGS: Mapping[MergeKind, Callable[[LayerStatistics, int], Clusters]] = {
    "output-similarity": output_clusters,
    "router-similarity": router_clusters,
}


def merged_coefficients(
    clusters: Clusters, counts: Floats, router: MergeRouter = "sum"
) -> Coefficients:
    """Merge each cluster, its members weighted by the tokens routed to them.

    A row of W_EM is counts_i / sum of the cluster's counts (equal where none was seen). A row of
    W_RM adds up its members' scores, or with ``dominant`` takes the most used member's alone:
    then no router map is needed where the model renormalises, and the file is a plain one.

    :param counts: [E] tokens routed to each expert
    :returns: W_EM and W_RM, [E', E]
    """
    experts = np.zeros((len(clusters), len(counts)))
    scores = np.zeros_like(experts)
    for row, members in enumerate(clusters):
        ids = list(members)
        used = counts[ids]
        experts[row, ids] = used / used.sum() if used.sum() > 0 else 1 / len(ids)
        scores[row, ids if router == "sum" else ids[int(used.argmax())]] = 1
    return Coefficients(experts.astype(np.float32), scores.astype(np.float32))


def merged_map(
    space: Space,
    evidence: Evidence,
    keep: Mapping[int, int],
    kind: MergeKind,
    router: MergeRouter,
    provenance: Provenance,
    tokens_seen: Mapping[int, Sequence[int]] | None = None,
) -> RoutingMap:
    """Make the routing map that merges every layer's experts.

    :param space: the base; its top-k is the map's, its ``keep`` and ``budget`` are not looked at
    :param evidence: decoder layer -> what was seen of it, for every layer of the base
    :param keep: decoder layer -> E'
    :param tokens_seen: decoder layer -> tokens per expert for the map; the evidence's if not given
    :raises PruneError: if a layer was not scored or saw no token, or cannot keep so many experts;
        or if the router cannot act on merged experts
    """
    _check_router(space, router)
    coefficients = []
    for layer, experts in space.num_experts.items():
        seen = _seen(evidence, layer)
        if seen.num_experts != experts:
            raise PruneError(
                f"layer {layer} has {experts} experts, but {seen.num_experts} were scored"
            )
        if not space.top_k[layer] <= keep[layer] <= experts:
            raise PruneError(
                f"layer {layer} cannot keep {keep[layer]} of {experts} experts with top-k "
                f"{space.top_k[layer]}",
                hint="keep at least as many experts as are active per token",
            )
        clusters = CLUSTERINGS[kind](seen, keep[layer])
        coefficients.append(merged_coefficients(clusters, seen.counts, router))
    groups = tuple(space.group((layer,)) for layer in space.layers)
    seen_by = tokens_seen or {n: evidence[n].seen.counts.round().tolist() for n in space.layers}
    return space.genome_map(Genome(tuple(coefficients)), groups, provenance, seen_by)


def _check_router(space: Space, router: MergeRouter) -> None:
    if space.shape.num_groups > 1:
        raise PruneError(
            f"--merge: the router first chooses among {space.shape.num_groups} groups, and experts "
            "merged across them would be in none",
            hint="drop experts instead: leave out --merge",
        )
    if router == "sum" and not space.shape.mappable:
        raise PruneError(
            f"--merge: the router of a {space.shape.model_type} model cannot add up scores",
            hint="--merge-router dominant",
        )


def _seen(evidence: Evidence, layer: int) -> LayerStatistics:
    found = evidence.get(layer)
    if found is None or found.seen.tokens <= 0:
        raise PruneError(
            f"layer {layer} {'was not scored' if found is None else 'saw no token'}",
            hint="make the scores again, of this model and with more text",
        )
    return found.seen


def _cosines(gram: Floats) -> Floats:
    """Cosines of vectors from their products [n, n]; 0 where a vector is zero."""
    lengths = np.sqrt(np.diagonal(gram).clip(min=0))
    scale = np.outer(lengths, lengths)
    return np.divide(gram, scale, out=np.zeros_like(gram), where=scale > 0)


def _average_linkage(distances: Floats, count: int) -> list[list[int]]:
    """Join the nearest two of n parts until ``count`` are left; distances [n, n]."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    size = len(distances)
    near = (distances + distances.T) / 2  # rounding must not break the symmetry
    np.fill_diagonal(near, 0)
    tree = linkage(squareform(near.clip(min=0), checks=False), method="average")
    # The first steps of the tree, and not scipy's cut at a height: ties would leave fewer parts.
    parts: dict[int, list[int]] = {i: [i] for i in range(size)}
    for step, (left, right) in enumerate(tree[: size - count, :2].astype(int)):
        parts[size + step] = parts.pop(int(left)) + parts.pop(int(right))
    return list(parts.values())


def _joined(parts: list[list[int]], seen: LayerStatistics) -> Clusters:
    """Add each expert that is in no part to that of the expert whose logits are most like its."""
    owner = {expert: number for number, part in enumerate(parts) for expert in part}
    placed = list(owner)
    similarity = _cosines(seen.logit_gram)
    whole = [list(part) for part in parts]
    for expert in sorted(set(range(seen.num_experts)) - owner.keys()):
        nearest = placed[int(similarity[expert, placed].argmax())]
        whole[owner[nearest]].append(expert)
    return tuple(sorted(tuple(sorted(part)) for part in whole))
