"""The mathematics of routing on plain tensors; shared by every engine and by the plugin.

T tokens, E experts before pruning, E' after, k active experts per token.
Order (EEP, section 4.2): scores over E -> W_RM -> top-k over E' -> renormalise if the model does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from vllm_moe_prune.layout import Score

# A continuous W_RM may be negative, so k mapped weights can cancel out. Dividing by no less than
# this share of their absolute sum bounds the result; weights of one sign are never changed.
LEAST_SHARE = 0.05
LEAST_SUM = 1e-20  # all scores may be 0 in float32


def scores(logits: torch.Tensor, score: Score) -> torch.Tensor:
    """Return the router's scores [T, E] in float32 from its logits [T, E]."""
    import torch

    logits = logits.float()
    if score == "sqrtsoftplus":
        return torch.nn.functional.softplus(logits).sqrt()
    return torch.softmax(logits, dim=-1) if score == "softmax" else torch.sigmoid(logits)


def renormalised(weights: torch.Tensor) -> torch.Tensor:
    """Divide the weights [T, k] by their sum (EEP), guarded where they nearly cancel out.

    Weights that are all negative become positive, as in the released code: their order is kept by
    the top-k before, and they sum to one.
    """
    total = weights.sum(dim=-1, keepdim=True)
    least = (LEAST_SHARE * weights.abs().sum(dim=-1, keepdim=True)).clamp_min(LEAST_SUM)
    return weights / total.where(total.abs() >= least, least.copysign(total))


def route(
    logits: torch.Tensor,
    w_rm: torch.Tensor,
    top_k: int,
    *,
    score: Score,
    renormalise: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose experts through a router map.

    :param logits: [T, E], any float dtype
    :param w_rm: W_RM, [E', E], float32; acts after the score function
    :returns: weights [T, k] in float32 and expert ids [T, k] in 0..E'-1, best first
    """
    mapped = scores(logits, score) @ w_rm.T
    weights, ids = mapped.topk(top_k, dim=-1)
    return (renormalised(weights) if renormalise else weights), ids
