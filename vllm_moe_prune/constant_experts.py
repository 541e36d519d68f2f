"""`ConstantExperts`: vectors that stand for experts, beside the experts that are computed.

T tokens, k choices of each, D numbers of an output, S vectors. A router chooses among all; what it
chooses of those that are constant adds its weight times a vector, and the experts' own kernel is
given a weight of 0 in its place, for an expert that is there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_moe_prune.layer_map import LayerMap
from vllm_moe_prune.matrices import Matrix
from vllm_moe_prune.routing_map import RoutingMap


class ConstantExperts(torch.nn.Module):
    """The substituted experts of one layer.

    All is buffers, as in `MappedRouter` and for the same reason. Vectors are float32, whatever the
    model is: they are few, and each token adds up several.

    :param leads_to: of each choice, the number under which it is computed, or -1 - s for vector s
    :param vectors: [S, D]
    """

    slots: torch.Tensor  # [choices] int32: where it is computed; of a constant one, any other's
    columns: torch.Tensor  # [choices] int64: s of a constant one, S of a computed one
    vectors: torch.Tensor  # [S, D] float32

    def __init__(
        self, leads_to: Sequence[int], vectors: Matrix, device: torch.device | None = None
    ) -> None:
        super().__init__()
        spare, count = next(one for one in leads_to if one >= 0), len(vectors)
        slots = [one if one >= 0 else spare for one in leads_to]
        columns = [count if one >= 0 else -1 - one for one in leads_to]
        for name, buffer in (
            ("slots", torch.tensor(slots, dtype=torch.int32, device=device)),
            ("columns", torch.tensor(columns, dtype=torch.int64, device=device)),
            ("vectors", torch.tensor(vectors, dtype=torch.float32, device=device)),
        ):
            buffer.weight_loader_numel = 0  # type: ignore[attr-defined]  # see `MappedRouter`
            self.register_buffer(name, buffer, persistent=False)

    @classmethod
    def of(cls, routing_map: RoutingMap, layer: LayerMap) -> ConstantExperts:
        """Make those of a layer whose stored experts are the kept ones alone."""
        return cls(layer.choices, routing_map.vectors(layer))

    @classmethod
    def among_all(
        cls, routing_map: RoutingMap, layer: LayerMap, device: torch.device
    ) -> ConstantExperts:
        """Make those of a layer that has all E experts: choices are slots (`LayerMap.slots`)."""
        leads_to = list(range(layer.num_experts))
        constant = [slot for slot, c in zip(layer.slots, layer.choices, strict=True) if c < 0]
        numbers = [c for c in layer.choices if c < 0]
        for slot, number in zip(constant, numbers, strict=True):
            leads_to[slot] = number
        kept = next(slot for slot, c in zip(layer.slots, layer.choices, strict=True) if c >= 0)
        made = cls(leads_to, routing_map.vectors(layer), device)
        # Not an expert that was dropped: what it makes may not even be finite.
        made.slots[constant] = kept
        return made

    def forward(
        self, weights: torch.Tensor, ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Take what is constant out of a choice.

        :param weights: [T, k]
        :param ids: [T, k] choices of the router
        :returns: weights [T, k], 0 where the choice is constant; ids [T, k] of experts that are
            computed; the sum [T, D] of weights times vectors in float32
        """
        columns = self.columns[ids.long()]
        count = len(self.vectors)
        scales = weights.new_zeros((len(weights), count + 1), dtype=torch.float32)
        scales.scatter_add_(1, columns, weights.float())
        return (
            weights.masked_fill(columns < count, 0.0),
            self.slots[ids.long()].to(ids.dtype),
            scales[:, :count] @ self.vectors,
        )
