"""The oracle of substituted experts: transformers, with constants in place of some experts.

The model's own router chooses among all experts and weighs them. Then token by token and choice by
choice: a constant expert gives its vector, every other one what it gives alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.sample_maps import map_of
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap, Selection, Substituted
from vllm_moe_prune.layouts import LAYOUTS
from vllm_moe_prune.routing_map import RoutingMap
from vllm_moe_prune.substitutes import check_substitutable

Vectors = Mapping[int, Mapping[int, Sequence[float]]]  # decoder layer -> expert -> [D]


@contextmanager
def constant(model: Any, vectors: Vectors) -> Iterator[None]:
    """Let these experts give these vectors, whatever they are given."""
    changed = []
    for name, experts in model.named_modules():
        found = re.search(r"\.layers\.(\d+)\.(?:.*\.)?experts$", name)
        if found and hasattr(experts, "down_proj") and int(found[1]) in vectors:
            experts.forward = _with(experts.forward, vectors[int(found[1])])
            changed.append(experts)
    assert len(changed) == len(vectors)
    try:
        yield
    finally:
        for experts in changed:
            del experts.forward


def _with(own: Any, vectors: Mapping[int, Sequence[float]]) -> Any:
    def forward(
        hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, *_: Any
    ) -> torch.Tensor:
        rows = []
        for token in range(len(hidden)):
            row = torch.zeros(hidden.shape[-1])
            for place, expert in enumerate(ids[token].tolist()):
                weight = weights[token, place]
                if expert in vectors:
                    row = row + float(weight) * torch.tensor(vectors[expert])
                else:
                    one, at = slice(token, token + 1), slice(place, place + 1)
                    row = row + own(hidden[one], ids[one, at], weights[one, at])[0].float()
            rows.append(row)
        return torch.stack(rows).to(hidden.dtype)

    return forward


def substituted_map(
    base: Checkpoint, kept: Mapping[int, Sequence[int]], *, top_k: int | None = None
) -> tuple[RoutingMap, Vectors]:
    """Return a map in which random vectors stand for all experts but these, and the vectors."""
    rng, vectors = np.random.default_rng(11), dict[int, dict[int, list[float]]]()
    layers, matrices = [], dict[str, Any]()
    for layer, count in base.expert_counts().items():
        others = tuple(expert for expert in range(count) if expert not in kept[layer])
        entry = None
        if others:
            drawn = rng.normal(0, 0.5, (len(others), base.text_config.get("hidden_size", 64)))
            matrices[f"v{layer}"] = drawn.astype(np.float32)
            entry = Substituted(experts=others, vectors=f"v{layer}")
            vectors[layer] = dict(zip(others, matrices[f"v{layer}"].tolist(), strict=True))
        layers.append(
            LayerMap(
                layer=layer,
                num_experts=count,
                num_kept=len(kept[layer]),
                top_k=top_k or base.layout.top_k(base.config),
                experts=Selection(kept=tuple(kept[layer])),
                substituted=entry,
            )
        )
    return map_of(base.folder, layers, **matrices), vectors


def saved(routing_map: RoutingMap, folder: Path) -> dict[str, str]:
    """Write a map and return vLLM's settings that name it."""
    routing_map.save(folder)
    return {"routing_map": str(folder)}


def is_substitutable(family: str) -> bool:
    """Whether a vector can stand for an expert of a family."""
    try:
        check_substitutable(LAYOUTS[family])
    except PruneError:
        return False
    return True
