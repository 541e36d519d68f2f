"""Genomes into the layers of a routing map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from offline.maps.depth_groups import Groups
from offline.maps.genome import Coefficients, Genome, Kept, Matrix, selected
from vllm_moe_prune.layer_map import Selection, Substituted


@dataclass(frozen=True, slots=True)
class Entry:
    """How a group's coefficients are written in a routing map; its layers share ``matrices``."""

    experts: Selection
    router: Literal["sliced", "mapped"]
    router_rows: Selection | None
    matrices: dict[str, Matrix]
    substituted: Substituted | None = None


def entry_of(coefficients: Coefficients, name: str, *, slices: bool) -> Entry:
    """Write coefficients in the simplest form that computes the same.

    A selection of distinct experts is a list of ids, everything else a matrix. The router is
    sliced where W_RM selects distinct experts and that is wanted: mostly where it is the same,
    because the model renormalises the top-k weights, so that the removed scores cancel out. Kept
    ids that both matrices share are sorted.

    :param name: begins the names of the matrices: ``NAME.experts``, ``NAME.router``
    :param slices: whether it is wanted (`router_kind.slices`)
    """
    kept = _distinct(coefficients.experts)
    rows = _distinct(coefficients.router)
    router: Literal["sliced", "mapped"] = "sliced" if rows and slices else "mapped"
    if kept is not None and kept == rows:
        return Entry(Selection(kept=tuple(sorted(kept))), router, None, {})
    matrices: dict[str, Matrix] = {}

    def selection(ids: Kept | None, matrix: Matrix, part: str) -> Selection:
        if ids is not None:
            return Selection(kept=ids)
        matrices[f"{name}.{part}"] = matrix.copy()  # a genome's own are read-only
        return Selection(matrix=f"{name}.{part}")

    experts = selection(kept, coefficients.experts, "experts")
    router_rows = selection(rows, coefficients.router, "router")
    return Entry(experts, router, router_rows, matrices)


def substituted_entry(kept: Kept, outputs: Matrix, name: str) -> Entry:
    """Write that the router chooses among all experts and vectors stand for those not kept.

    :param outputs: [E, D], by expert
    :param name: begins the name of the matrix: ``NAME.substituted``
    """
    others = tuple(expert for expert in range(len(outputs)) if expert not in kept)
    if not others:
        return Entry(Selection(kept=tuple(sorted(kept))), "sliced", None, {})
    vectors = f"{name}.substituted"
    constant = Substituted(experts=others, vectors=vectors)
    matrices = {vectors: outputs[list(others)]}
    return Entry(Selection(kept=tuple(sorted(kept))), "sliced", None, matrices, constant)


def kept_genome(kept: Mapping[int, Kept], groups: Groups) -> Genome:
    """Return the one-hot genome of kept experts that are the same within each group.

    :param kept: decoder layer -> expert ids
    """
    rows = [kept[group.layers[0]] for group in groups]
    return Genome.of_kept(rows, [group.num_experts for group in groups])


def _distinct(matrix: Matrix) -> Kept | None:
    kept = selected(matrix)
    return kept if kept is not None and len(set(kept)) == len(kept) else None
