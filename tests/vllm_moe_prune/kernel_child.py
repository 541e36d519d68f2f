"""Runs the routing kernel in Triton's interpreter, beside PyTorch, and prints what came out.

TRITON_INTERPRET is read when a kernel is defined, hence a process of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from vllm_moe_prune import routing_kernel
from vllm_moe_prune.layout import Score
from vllm_moe_prune.mapped_router import MappedRouter
from vllm_moe_prune.routing import route

_ALLOCATES = ("aten.empty", "aten.new_empty")
_VIEWS = ("aten.permute", "aten.view", "aten.expand")
SIZES = ((8, 4, 2, 5), (70, 33, 6, 17))  # E, E', k, T
SCORES: tuple[Score, ...] = ("softmax", "sigmoid")


class FusedRouter(MappedRouter):
    """Takes the kernel, as on a GPU."""

    def is_fused(self, logits: torch.Tensor) -> bool:
        return True


class Kernels(TorchDispatchMode):
    """Counts what a GPU would start: PyTorch's operations but views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not str(func).startswith((*_ALLOCATES, *_VIEWS)):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Launches:
    """Stands for the kernel and counts its launches, in which the interpreter calls PyTorch."""

    def __init__(self, kernel: Any, kernels: Kernels) -> None:
        self.kernel, self.kernels = kernel, kernels

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **more: Any) -> None:
            self.kernels.names.append("triton")
            with _disable_current_modes():
                self.kernel[grid](*args, **more)

        return launch


def map_of(kind: str, experts: int, kept: int) -> torch.Tensor:
    """Return W_RM [E', E]: one-hot, or with other entries, or with negative ones."""
    one_hot = torch.eye(experts)[torch.randperm(experts)[:kept]]
    more = {"one-hot": torch.zeros, "positive": torch.rand, "negative": torch.randn}[kind]
    return one_hot + more(kept, experts)


def compared() -> list[dict[str, Any]]:
    """Return, for each case, how far the kernel is from PyTorch's operations."""
    found = []
    for size, score, renormalise, kind in itertools.product(
        SIZES, SCORES, (False, True), ("one-hot", "positive", "negative")
    ):
        experts, kept, top_k, tokens = size
        w_rm = map_of(kind, experts, kept)
        wide = torch.randn(tokens, experts + 3) * 2
        logits = wide[:, :experts]  # strided, as a gate beside another one
        router = FusedRouter(w_rm.numpy(), score)
        weights, ids = router(logits, logits, top_k, renormalise)
        expected, expected_ids = route(logits, w_rm, top_k, score=score, renormalise=renormalise)
        difference = (weights - expected).abs() / (expected.abs() + 1e-6)
        found.append(
            {
                "case": [*size, score, renormalise, kind],
                "ids": bool((ids == expected_ids).all()),
                "difference": float(difference.max()),
                "dtypes": [str(weights.dtype), str(ids.dtype)],
            }
        )
    return found


def edges() -> dict[str, Any]:
    """Return what becomes of logits that are no numbers, of scores that are all 0, of no token."""
    one_hot = FusedRouter(map_of("one-hot", 8, 5).numpy(), "softmax")
    logits = torch.full((2, 8), torch.nan)
    _, ids = one_hot(logits, logits, 2, True)
    lost = torch.zeros(1, 8)
    lost[0, next(e for e in range(8) if e not in one_hot.w_rm.tolist())] = 1000.0
    none = torch.zeros(0, 8)
    return {
        "nan": ids.flatten().tolist(),
        "zero": one_hot(lost, lost, 2, True)[0].tolist(),
        "empty": list(one_hot(none, none, 2, True)[1].shape),
    }


def counted() -> dict[str, dict[str, int]]:
    """Return how many kernels a layer takes, by kind of map: before, composed, fused."""
    found: dict[str, dict[str, int]] = {}
    logits = torch.randn(4, 8).bfloat16()
    kernel = routing_kernel.route_kernel
    for kind, renormalise in itertools.product(("one-hot", "positive", "negative"), (False, True)):
        w_rm = map_of(kind, 8, 5)
        router = FusedRouter(w_rm.numpy(), "softmax")

        def before(w_rm: torch.Tensor = w_rm, renormalise: bool = renormalise) -> None:
            _, ids = route(logits, w_rm, 2, score="softmax", renormalise=renormalise)
            ids.to(torch.int32)

        def composed(router: MappedRouter = router, renormalise: bool = renormalise) -> None:
            router.composed(logits, 2, renormalise=renormalise)

        def fused(router: MappedRouter = router, renormalise: bool = renormalise) -> None:
            router(logits, logits, 2, renormalise)

        row = found.setdefault(f"{kind}{', renormalised' if renormalise else ''}", {})
        for way in (before, composed, fused):
            with Kernels() as kernels:
                setattr(routing_kernel, "route_kernel", Launches(kernel, kernels))  # noqa: B010
                way()
            row[way.__name__] = len(kernels.names)
    return found


if __name__ == "__main__":
    torch.manual_seed(0)
    json.dump({"compared": compared(), "edges": edges(), "counted": counted()}, sys.stdout)
