"""The oracle of all families: a transformers model whose dropped experts have no score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from tests.families.models import CHOOSING

_GATES = ("gate.weight", "router.weight", "gate.wg.weight", "router.proj.weight")


@contextmanager
def without(model: Any, num_experts: int, kept: Mapping[int, tuple[int, ...]]) -> Iterator[None]:
    """Remove all other experts' scores: their logits, and what is added to choose, are -inf.

    :param kept: decoder layer -> ids of the experts that stay
    """
    gates: dict[int, list[int]] = {}
    biases: list[tuple[torch.Tensor, torch.Tensor]] = []
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    for layer, ids in kept.items():
        dropped = [expert for expert in range(num_experts) if expert not in ids]
        names = [name for name in state if f".layers.{layer}." in name]
        (gate,) = [
            state[n] for n in names
            if n.endswith(_GATES) and "shared" not in n and "attn" not in n
        ]  # fmt: skip
        gates[gate.data_ptr()] = dropped
        for name in names:
            if any(one in name for one in CHOOSING):
                biases.append((state[name].data, state[name].data.clone()))
                state[name].data[..., dropped] = float("-inf")
    linear = torch.nn.functional.linear

    def masked(given: torch.Tensor, weight: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
        logits = linear(given, weight, *more, **named)
        if (dropped := gates.get(weight.data_ptr())) is not None:
            logits[..., dropped] = float("-inf")
        return logits

    torch.nn.functional.linear = masked
    try:
        yield
    finally:
        torch.nn.functional.linear = linear
        for tensor, before in biases:
            tensor.copy_(before)
