"""The experts while they are trained: slices of the dense feed-forward plus low-rank deltas."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from offline.demo.dense import HIDDEN, LAYERS, Dense

RANK, TOP_K = 16, 2
_ROWS = 64  # an expert's tokens are padded to a multiple: oneDNN compiles a kernel for each shape
#: delta of a projection = b @ a, with a: [rank, in], b: [out, rank]
FACTORS = ("gate_a", "gate_b", "up_a", "up_b", "down_a", "down_b")


def fresh_factors(experts: int, kept: int, seed: int) -> dict[str, Tensor]:
    """Low-rank factors [experts, layers, ...], a random and b zero: all deltas are zero."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        values = torch.randn(experts, LAYERS, *shape, generator=generator)
        return values / math.sqrt(shape[-1])

    factors = {
        "gate_a": random(RANK, HIDDEN),
        "gate_b": torch.zeros(experts, LAYERS, kept, RANK),
        "up_a": random(RANK, HIDDEN),
        "up_b": torch.zeros(experts, LAYERS, kept, RANK),
        "down_a": random(RANK, kept),
        "down_b": torch.zeros(experts, LAYERS, HIDDEN, RANK),
    }
    return {name: factors[name] for name in FACTORS}


@dataclass(frozen=True, slots=True)
class Slices:
    """The dense weights that each expert keeps, [experts][layers] of one projection each."""

    gate: list[list[Tensor]]  # [kept, hidden]
    up: list[list[Tensor]]  # [kept, hidden]
    down: list[list[Tensor]]  # [hidden, kept]

    @classmethod
    def cut(cls, dense: Dense, neurons: Tensor) -> Slices:
        """Cut the experts out of the dense base. neurons: [experts, layers, kept]."""

        def rows(name: str) -> list[list[Tensor]]:
            return [[dense.layer(i, name)[kept] for i, kept in enumerate(e)] for e in neurons]

        def columns(name: str) -> list[list[Tensor]]:
            return [
                [dense.layer(i, name)[:, kept].contiguous() for i, kept in enumerate(e)]
                for e in neurons
            ]

        return cls(rows("mlp.gate_proj"), rows("mlp.up_proj"), columns("mlp.down_proj"))


@dataclass(slots=True)
class Observed:
    """What one forward pass leaves behind for the losses."""

    inputs: dict[int, Tensor] = field(default_factory=dict)  # layer -> [tokens, hidden]
    balance: list[Tensor] = field(default_factory=list)  # one number per layer


def moe_feed_forward(
    slices: Slices, factors: dict[str, Tensor], routers: Tensor, observed: Observed
) -> Callable[[int, Tensor], Tensor]:
    """The Mixture-of-Experts block as a feed-forward: top-2 of softmax, renormalised.

    factors: as ``fresh_factors``; routers: [layers, experts, hidden].
    """
    parts = {
        name: [layers.unbind(0) for layers in value.to(torch.bfloat16).unbind(0)]
        for name, value in factors.items()
    }
    gates = routers.unbind(0)
    experts = routers.shape[1]

    def expert(e: int, layer: int, x: Tensor) -> Tensor:
        def low_rank(name: str, full: Tensor, x: Tensor) -> Tensor:
            a, b = parts[f"{name}_a"][e][layer], parts[f"{name}_b"][e][layer]
            return torch.addmm(F.linear(x, full), F.linear(x, a), b.t())

        inner = F.silu(low_rank("gate", slices.gate[e][layer], x))
        inner = inner * low_rank("up", slices.up[e][layer], x)
        return low_rank("down", slices.down[e][layer], inner)

    def feed_forward(layer: int, x: Tensor) -> Tensor:
        observed.inputs[layer] = x
        scores = F.linear(x.float(), gates[layer]).softmax(dim=-1)
        top, chosen = scores.topk(TOP_K, dim=-1)
        top = (top / top.sum(dim=-1, keepdim=True)).to(x.dtype)
        share = F.one_hot(chosen, experts).float().mean(dim=(0, 1))
        observed.balance.append(experts * (share * scores.mean(dim=0)).sum())
        output = torch.zeros_like(x)
        for e in range(experts):
            rows, slot = (chosen == e).nonzero(as_tuple=True)
            weight = top[rows, slot]
            if padding := -len(rows) % _ROWS:
                rows, weight = F.pad(rows, (0, padding)), F.pad(weight, (0, padding))
            if len(rows):
                output = output.index_add(0, rows, expert(e, layer, x[rows]) * weight[:, None])
        return output

    return feed_forward
