"""Small scores of random passes through two layers, on three domains of different length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from offline.calibration.scores import Scores
from offline.calibration.statistics import GradientStatistics, WeightStatistics
from tests.calibration.naive import Pass
from tests.calibration.passes import accumulate, random_pass
from tests.sample_shapes import shape_of
from vllm_moe_prune.fingerprint import BaseFingerprint
from vllm_moe_prune.provenance import DataIdentity, Provenance

TOKENS = {"code": 50, "prose": 110, "sums": 20}
EXPERTS = {1: 5, 3: 4}  # layers 0 and 2 are dense


def passes(seed: int = 0) -> dict[str, dict[int, Pass]]:
    """Return a pass by domain and layer."""
    return {
        domain: {
            layer: random_pass(seed + tokens + layer, tokens=tokens, experts=experts, top_k=2)
            for layer, experts in EXPERTS.items()
        }
        for domain, tokens in TOKENS.items()
    }


def gradient(experts: int, seed: int) -> GradientStatistics:
    rng = np.random.default_rng(seed)
    return GradientStatistics(
        rng.random((experts, experts)),
        rng.random(experts),
        rng.random(experts),
        rng.random(experts),
    )


def make_scores(seed: int = 0, *, gradients: bool = True) -> Scores:
    domains = {
        domain: {
            layer: replace(
                accumulate(run).finish(layer),
                gradient=gradient(EXPERTS[layer], layer + len(domain)) if gradients else None,
            )
            for layer, run in layers.items()
        }
        for domain, layers in passes(seed).items()
    }
    rng = np.random.default_rng(seed)
    return Scores(
        shape=shape_of(
            EXPERTS,
            base=BaseFingerprint(config="a", index="b", routers="c", name="a [ model ]"),
            num_groups=4,
            topk_group=2,
        ),
        domains=domains,
        weights={
            layer: WeightStatistics(rng.random((e, e)), *(rng.random(e) for _ in range(4)))
            for layer, e in EXPERTS.items()
        },
        provenance=Provenance.now(
            "score",
            settings={"calibration": "code:2"},
            data=(DataIdentity(name="code", split="train", count=2, sha256="sha256:x"),),
        ),
        sequences={"code": 5, "prose": 11},
    )
