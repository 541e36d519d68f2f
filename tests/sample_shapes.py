"""Shapes of models that do not exist, and spaces of other shapes than they had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from offline.maps.map_space import Space
from offline.maps.moe_shape import MoeShape
from tests.vllm_moe_prune.bare import BASE


def shape_of(num_experts: Mapping[int, int], top_k: int = 2, **more: Any) -> MoeShape:
    """A Mixtral with E experts in each of these layers, and what else it should be."""
    fields = {"model_type": "mixtral", "base": BASE, **more}
    return MoeShape(num_experts=num_experts, top_k=dict.fromkeys(num_experts, top_k), **fields)


def reshaped(space: Space, **changes: Any) -> Space:
    """The same space of a model whose shape has other fields."""
    return replace(space, shape=replace(space.shape, **changes))
