"""Hand-made routing maps of every kind, for any base checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offline.build.build import build
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap


def map_of(base: Path, layers: Sequence[LayerMap], **matrices: Any) -> RoutingMap:
    """Make a map for a base checkpoint."""
    checkpoint = Checkpoint.open(base)
    return RoutingMap.build(
        model_type=checkpoint.layout.model_type,
        base=checkpoint.fingerprint(),
        num_groups=checkpoint.layout.num_groups(checkpoint.config),
        layers=tuple(layers),
        provenance=Provenance.now("by hand"),
        matrices={name.replace("__", "."): matrix for name, matrix in matrices.items()},
    )


def uniform_map(base: Path, kept: Sequence[Sequence[int]], top_k: int = 2) -> RoutingMap:
    """Keep the same number of experts in every layer, sliced routers: the plain form."""
    return kept_map(base, kept, [top_k] * len(kept))


def kept_map(base: Path, kept: Sequence[Sequence[int]], top_k: Sequence[int]) -> RoutingMap:
    """Keep these experts of each layer, and activate so many of them; sliced routers."""
    counts = Checkpoint.open(base).expert_counts()
    layers = [
        LayerMap(
            layer=number,
            num_experts=count,
            num_kept=len(ids),
            top_k=active,
            experts=Selection(kept=tuple(ids)),
        )
        for (number, count), ids, active in zip(counts.items(), kept, top_k, strict=True)
    ]
    return map_of(base, layers)


def mixed_map(base: Path, seed: int = 0) -> RoutingMap:
    """Make a map for a base of 4 layers, 8 experts: all that a compact checkpoint can hold.

    Layer 0: all experts. Layer 1: 4 kept, sliced. Layer 2: 3, top-1, one-hot but mapped.
    Layer 3: 4 merged experts behind a continuous router map.
    """
    rng = np.random.default_rng(seed)
    near_one_hot = np.eye(8, dtype=np.float32)[[1, 2, 5, 6]]
    w_rm = near_one_hot + rng.normal(0, 0.1, (4, 8))
    w_em = near_one_hot + rng.normal(0, 0.1, (4, 8))
    layers = [
        _layer(0, 8, 2, Selection(kept=tuple(range(8)))),
        _layer(1, 4, 2, Selection(kept=(0, 3, 4, 7))),
        _layer(2, 3, 1, Selection(kept=(6, 1, 2)), router="mapped"),
        _layer(
            3,
            4,
            2,
            Selection(matrix="layers.3.experts"),
            router="mapped",
            router_rows=Selection(matrix="layers.3.router"),
        ),
    ]
    return map_of(base, layers, layers__3__experts=w_em, layers__3__router=w_rm)


def build_compact(base: Path, out: Path) -> Path:
    """Build the compact checkpoint of `mixed_map`."""
    build(Checkpoint.open(base), mixed_map(base), out)
    return out


def _layer(layer: int, kept: int, top_k: int, experts: Selection, **more: Any) -> LayerMap:
    return LayerMap(layer=layer, num_experts=8, num_kept=kept, top_k=top_k, experts=experts, **more)
