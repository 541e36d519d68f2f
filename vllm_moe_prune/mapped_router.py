"""`MappedRouter`: chooses experts through a router map, as vLLM's custom_routing_function.

T tokens, E experts before pruning, E' after, k active experts per token.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Self

import torch

from vllm_moe_prune.layer_map import LayerMap
from vllm_moe_prune.layout import Score
from vllm_moe_prune.matrices import Matrix
from vllm_moe_prune.routing import LEAST_SHARE, LEAST_SUM, renormalised, scores
from vllm_moe_prune.routing_map import RoutingMap


class MappedRouter(torch.nn.Module):
    """The router map of one layer; what it computes is `routing.route` with that W_RM.

    What can be known when it is made is not computed in every step: a one-hot W_RM is a list of
    ids and no product, and without a negative entry there is no sum that could cancel out. On a
    GPU all is one kernel (routing_kernel.py).

    The map is a buffer, so that vLLM finds it: it keeps a model's buffers while weights are
    discarded (sleep level 2) and puts them back when weights are loaded again. No checkpoint has
    it, hence it is not persistent.
    """

    w_rm: torch.Tensor  # [E, E'] float32, transposed; or [E'] int32, the ids of a one-hot one

    def __init__(self, w_rm: Matrix, score: Score) -> None:
        super().__init__()
        self.score: Score = score
        self.least_share = LEAST_SHARE if (w_rm < 0).any() else 0.0
        one_hot = ((w_rm == 0) | (w_rm == 1)).all() and (w_rm.sum(axis=1) == 1).all()
        # Made while the model is, hence on the device that the model is being made on.
        if one_hot:
            made = torch.tensor(w_rm.argmax(axis=1), dtype=torch.int32)
        else:
            made = torch.tensor(w_rm.T.copy(), dtype=torch.float32)
        # So many of its numbers come from a checkpoint: vLLM's reload does not wait for them.
        made.weight_loader_numel = 0  # type: ignore[attr-defined]
        self.register_buffer("w_rm", made, persistent=False)
        self.has_kernel = find_spec("triton") is not None

    @classmethod
    def of(cls, routing_map: RoutingMap, layer: LayerMap, score: Score) -> Self:
        """Make the router of a layer that a map has with a mapped one."""
        assert layer.router == "mapped"
        return cls(routing_map.router_matrix(layer), score)

    def forward(
        self, hidden_states: torch.Tensor, gating_output: torch.Tensor, topk: int, renormalize: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose experts from the router's logits [T, E].

        :returns: weights [T, k] in float32 and expert ids [T, k] in 0..E'-1, int32, best first
        """
        if self.is_fused(gating_output):
            from vllm_moe_prune.routing_kernel import route_fused

            return route_fused(
                gating_output,
                self.w_rm,
                topk,
                score=self.score,
                renormalise=renormalize,
                least_share=self.least_share,
            )
        return self.composed(gating_output, topk, renormalise=renormalize)

    def is_fused(self, logits: torch.Tensor) -> bool:
        """Whether one kernel does it all: on a GPU, up to a number of experts."""
        if not (logits.is_cuda and self.has_kernel):
            return False
        from vllm_moe_prune.routing_kernel import fits

        return fits(logits.shape[-1], self.w_rm.shape[-1])

    def composed(
        self, logits: torch.Tensor, top_k: int, *, renormalise: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose with PyTorch's own operations; as `forward`."""
        found = scores(logits, self.score)
        one_hot = self.w_rm.dim() == 1
        mapped = found.index_select(-1, self.w_rm) if one_hot else found @ self.w_rm
        weights, ids = mapped.topk(top_k, dim=-1)
        if renormalise and self.least_share:
            weights = renormalised(weights)
        elif renormalise:
            weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(LEAST_SUM)
        return weights, ids.to(torch.int32)
