"""Scores of a made-up model, of random tokens."""

from __future__ import annotations

from typing import Any

from offline.calibration.scores import Scores
from tests.criteria.samples import evidence_of, sample
from tests.sample_shapes import shape_of
from tests.vllm_moe_prune.bare import BASE
from vllm_moe_prune.fingerprint import BaseFingerprint
from vllm_moe_prune.provenance import DataIdentity, Provenance


def scores_of(
    layers: tuple[int, ...] = (0, 1, 2),
    *,
    domains: tuple[str, ...] = ("prose",),
    seed: int = 0,
    base: BaseFingerprint = BASE,
    gradients: bool = True,
    top_k: int = 2,
    **options: Any,
) -> Scores:
    """Return scores of these decoder layers; options are those of `sample`."""
    found = {
        domain: {
            layer: evidence_of(
                sample(seed + 10 * number + layer, top_k=top_k, **options),
                layer,
                gradients=gradients,
            )
            for layer in layers
        }
        for number, domain in enumerate(domains)
    }
    first = found[domains[0]]
    experts = {layer: one.seen.num_experts for layer, one in first.items()}
    return Scores(
        shape=shape_of(experts, top_k, base=base),
        domains={name: {n: one.seen for n, one in each.items()} for name, each in found.items()},
        weights={n: one.weights for n, one in first.items()},
        provenance=Provenance.now(
            "score",
            data=tuple(DataIdentity(name=name, count=60, sha256="sha256:0") for name in domains),
        ),
    )
