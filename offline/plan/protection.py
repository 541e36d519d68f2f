"""Experts that a plan may not drop: those that a user names, and outliers ("super experts")."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from offline.calibration.statistics import Evidence
from vllm_moe_prune.errors import PruneError

# Of Super Experts (arXiv 2507.23279), section 3: both conditions must hold.
PERCENTILE = 99.5
SHARE = 0.1

Protected = dict[int, tuple[int, ...]]  # decoder layer -> expert ids, in order

_PART = re.compile(r"(\d+):(\d+)(?:-(\d+))?")


def parse_protected(text: str, num_experts: Mapping[int, int]) -> Protected:
    """Read `LAYER:EXPERT` and `LAYER:FIRST-LAST` with commas between them.

    :param num_experts: decoder layer -> E
    :raises PruneError: naming the part that is wrong
    """
    found: dict[int, set[int]] = {}
    for part in (piece.strip() for piece in text.split(",")):
        match = _PART.fullmatch(part)
        if match is None:
            raise PruneError(
                f"--protect: {part!r} is neither LAYER:EXPERT nor LAYER:FIRST-LAST",
                hint="for example --protect 3:5,7:0-2",
            )
        layer, first, last = int(match[1]), int(match[2]), int(match[3] or match[2])
        if layer not in num_experts:
            raise PruneError(f"--protect {part}: layer {layer} has no experts")
        if not first <= last < num_experts[layer]:
            raise PruneError(
                f"--protect {part}: layer {layer} has experts 0 to {num_experts[layer] - 1}"
            )
        found.setdefault(layer, set()).update(range(first, last + 1))
    return {layer: tuple(sorted(found[layer])) for layer in sorted(found)}


def super_experts(
    evidence: Evidence, percentile: float = PERCENTILE, share: float = SHARE
) -> Protected:
    """Return the experts whose largest output entry stands out in the whole model.

    Its peak is above the percentile of all experts' peaks and above a share of the largest one.
    Few experts make the massive activations that attention sinks hang on; dropping one of them
    breaks the model (Super Experts, arXiv 2507.23279).

    :param percentile: 0..100
    :param share: 0..1
    """
    peaks = {layer: one.seen.peaks for layer, one in evidence.items()}
    every = np.concatenate(list(peaks.values()))
    least = max(float(np.percentile(every, percentile)), share * float(every.max()))
    found = {layer: np.flatnonzero(row > least) for layer, row in sorted(peaks.items())}
    return {layer: tuple(ids.tolist()) for layer, ids in found.items() if len(ids)}


def union_of(*protections: Protected) -> Protected:
    """Return what any of them protects."""
    layers = sorted({layer for one in protections for layer in one})
    return {
        layer: tuple(sorted({expert for one in protections for expert in one.get(layer, ())}))
        for layer in layers
    }


def without(protected: Protected, others: Protected) -> Protected:
    """Return what is protected and not among the others."""
    left = {n: tuple(i for i in ids if i not in others.get(n, ())) for n, ids in protected.items()}
    return {layer: ids for layer, ids in left.items() if ids}


def check_whole(protected: Protected, incomplete: Protected) -> None:
    """Refuse to protect experts that cannot be served.

    :param incomplete: decoder layer -> experts that lack a tensor
    :raises PruneError: naming them
    """
    left = without(protected, incomplete)
    lost = {n: tuple(sorted({*ids} - {*left.get(n, ())})) for n, ids in protected.items()}
    if any(lost.values()):
        raise PruneError(
            f"--protect: {named(lost)} lack tensors that others of their layers have",
            hint="`vmprune inspect MODEL` names these tensors; such experts cannot be served",
        )


def named(experts: Mapping[int, tuple[int, ...]]) -> str:
    """Write experts as `3:5 7:0 7:1`: the decoder layer and the expert."""
    return " ".join(f"{layer}:{expert}" for layer, ids in experts.items() for expert in ids)
