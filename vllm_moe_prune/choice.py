"""`Choice`: how a router takes k of E experts where no W_RM acts on its scores.

T tokens, E experts, k of them active. Experts are dropped by masks, before anything is chosen, so
that what remains is what a router with the kept rows alone would do (docs/routing-map.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vllm_moe_prune.layout import Score
from vllm_moe_prune.routing import scores

# Hidden states [T, D] and logits [T, E] -> weights and ids, both [T, as many as it chooses].
OwnChoice = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
_JUDGED_BY = 2  # best experts of a group, where a correction bias takes part in the choice


@dataclass(frozen=True, slots=True)
class Choice:
    """The choice of one layer's router.

    :param bias: correction [E], added to the scores to choose and not to weigh
    :param groups: that experts are in, equal slices of them by id
    :param active: groups that a token's experts come from
    :param own: the family's own function, which does it all and is given masked logits
    """

    score: Score
    renormalises: bool
    bias: torch.Tensor | None = None
    groups: int = 1
    active: int = 1
    own: OwnChoice | None = None

    @property
    def is_top_k(self) -> bool:
        """Whether the best scores are chosen and nothing else decides: a W_RM can act on them."""
        return self.bias is None and self.groups == 1 and self.own is None

    def __call__(
        self,
        hidden: torch.Tensor,
        logits: torch.Tensor,
        logit_mask: torch.Tensor,
        score_mask: torch.Tensor,
        top_k: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose experts; weights are not yet divided by their sum.

        :param hidden: [T, D]
        :param logits: [T, E], any float dtype
        :param logit_mask: [E], 0 or -inf: experts without a part in the softmax
        :param score_mask: [E], 0 or -inf: experts that are not chosen, those of the other among
            them
        :returns: weights [T, k] in float32 and ids [T, k], best first
        """
        if self.own is not None:
            weights, ids = self.own(hidden, logits + logit_mask.to(logits.dtype))
            return weights[:, :top_k].float(), ids[:, :top_k].long()
        found = scores(logits.float() + logit_mask, self.score)
        wanted = found + score_mask
        if self.bias is not None:
            wanted = wanted + self.bias.float()
        if self.groups > 1:
            wanted = self._in_best_groups(wanted)
        best, ids = wanted.topk(top_k, dim=-1)
        return (best if self.bias is None else found.gather(1, ids)), ids

    def _in_best_groups(self, wanted: torch.Tensor) -> torch.Tensor:
        """Return what is wanted [T, E], -inf outside of each token's best groups."""
        parted = wanted.view(len(wanted), self.groups, -1)  # [T, G, E / G]
        if self.bias is None:
            judged = parted.amax(dim=-1)
        else:
            judged = parted.topk(min(_JUDGED_BY, parted.shape[-1]), dim=-1).values.sum(dim=-1)
        best = judged.topk(self.active, dim=-1, sorted=False).indices
        outside = torch.ones_like(judged, dtype=torch.bool).scatter(1, best, False)
        return parted.masked_fill(outside[..., None], -torch.inf).flatten(1)
