"""How well a layer's output survives with only some of its experts, for many such subsets.

The measure of NAEE (Lu et al. 2024, arXiv 2402.14800, section 3.1): the Frobenius norm of the
difference between the outputs of the full MoE block and of the block with the subset, over the
calibration tokens. The inputs are those of the unpruned model, so layers do not influence one
another, and each expert computes each token once whatever the number of subsets: with w the
full block's weights over the E experts, w' the subset's and G[i, j] the inner product of the
outputs of experts i and j for a token, the squared difference is (w - w')^T G (w - w').
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from offline.engines.local.experts import LayerControl
from offline.engines.local.packing import Batch
from offline.engines.local.scoring import PackedLM
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing import renormalised

MAX_SUBSETS = 5000  # per layer: what NAEE used for models with many experts
_TOKENS = 512  # tokens for which all experts' outputs are held at the same time
_WEIGHTS = 1 << 23  # entries of [subsets, tokens, experts] that are held at the same time
Subset = tuple[int, ...]


def subsets_of(
    num_experts: int, keep: int, *, most: int = MAX_SUBSETS, seed: int = 0
) -> list[Subset]:
    """Return all subsets of ``keep`` experts in order, or ``most`` different random ones.

    :raises PruneError: if there is no such subset
    """
    if not 1 <= keep <= num_experts:
        raise PruneError(f"cannot keep {keep} of {num_experts} experts")
    if math.comb(num_experts, keep) <= most:
        return list(itertools.combinations(range(num_experts), keep))
    rng = random.Random(f"subsets {num_experts} {keep} {seed}")
    found: set[Subset] = set()
    while len(found) < most:
        found.add(tuple(sorted(rng.sample(range(num_experts), keep))))
    return sorted(found)


@dataclass(slots=True)
class Discrepancy:
    """The squared differences of one layer's subsets, added up token by token.

    :param kept: [S, E] bool, the experts of each subset
    :param top_k: active experts under a subset
    :param full_top_k: active experts of the full block
    :param sliced: whether the subset's router has its own experts' rows alone
    """

    layer: LayerControl
    kept: torch.Tensor
    top_k: int
    full_top_k: int
    squared: torch.Tensor  # [S] float64
    sliced: bool = False

    @classmethod
    def of(
        cls,
        layer: LayerControl,
        subsets: Iterable[Subset],
        top_k: int,
        full_top_k: int,
        *,
        sliced: bool = False,
    ) -> Discrepancy:
        """Begin with no token seen.

        :raises PruneError: if a subset has fewer experts than are to be active
        """
        rows = list(subsets)
        if any(len(row) < top_k for row in rows):
            raise PruneError(f"layer {layer.layer}: top-{top_k} needs as many experts to be kept")
        kept = torch.zeros(len(rows), layer.num_experts, dtype=torch.bool)
        kept.scatter_(1, torch.tensor(rows), True)
        squared = torch.zeros(len(rows), dtype=torch.float64)
        return cls(layer, kept, top_k, full_top_k, squared, sliced and not layer.layout.slices)

    def add(self, hidden: torch.Tensor) -> None:
        """Take tokens [T, D] as they enter the block."""
        for part in torch.split(hidden, _TOKENS):
            scores = self.layer.scores_of(part)  # [T, E]
            outputs = torch.stack(
                [self._output(i, part, scores) for i in range(self.layer.num_experts)], dim=1
            )  # [T, E, D]
            gram = outputs @ outputs.mT  # [T, E, E]
            full = self._weights(scores, self.full_top_k)  # [T, E]
            size = max(1, _WEIGHTS // scores.numel())
            kept = self.kept.to(part.device)
            sums = [self._sums(scores, full, gram, rows) for rows in torch.split(kept, size)]
            self.squared += torch.cat(sums).cpu()

    def _output(self, expert: int, hidden: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return what an expert adds to the sum for tokens [T, D], [T, D], before its weight."""
        weights = scores[:, expert] if self.layer.layout.weights_on_input else None
        return self.layer.output_of(expert, hidden, weights).double()

    def _sums(
        self, scores: torch.Tensor, full: torch.Tensor, gram: torch.Tensor, kept: torch.Tensor
    ) -> torch.Tensor:
        """Return the squared differences [S] of some subsets ``kept`` [S, E]."""
        left = scores.masked_fill(~kept[:, None, :], -math.inf)  # [S, T, E]
        if self.sliced:  # a softmax over the subset
            left = left / (scores @ kept.to(scores.dtype).T).T[..., None]
        change = (full - self._weights(left, self.top_k)).double()
        through = torch.einsum("ste,tef->stf", change, gram)
        return (through * change).sum(dim=(1, 2))

    def _weights(self, scores: torch.Tensor, top_k: int) -> torch.Tensor:
        """Return the weight of every expert's output, [..., E]: zero for those not chosen."""
        best, ids = scores.topk(top_k, dim=-1)
        layout = self.layer.layout
        weights = renormalised(best) if layout.renormalise else best
        if layout.weights_on_input:  # where no subset changes them
            assert not layout.renormalise
            weights = torch.ones_like(weights)
        return torch.zeros_like(scores).scatter_(-1, ids, weights)


@torch.inference_mode()
def measure(lm: PackedLM, batches: Iterable[Batch], layers: Mapping[int, Discrepancy]) -> None:
    """Run batches through the model, which must be the base, and add up what each layer sees."""
    for batch in batches:
        with _watched(layers, batch.real):
            lm.forward(batch)


@contextmanager
def _watched(layers: Mapping[int, Discrepancy], real: torch.Tensor) -> Iterator[None]:
    def hook(discrepancy: Discrepancy) -> Any:
        def note(_: Any, given: tuple[torch.Tensor, ...]) -> None:
            rows = given[0].flatten(0, -2)
            discrepancy.add(rows[real.to(rows.device)])

        return note

    hooks = [d.layer.block.register_forward_pre_hook(hook(d)) for d in layers.values()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
