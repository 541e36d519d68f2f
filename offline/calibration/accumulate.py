"""The accumulator of one layer: routing and expert outputs in, step by step, sums out.

It takes all experts at once, where their outputs [T, k, D] are; nothing loops over experts and
nothing waits for the device. Sums are float64; rows of 16-bit outputs are added up in float32
within blocks of 64 tokens of one expert. Means and squared deviations are joined by Chan's formula
(Chan, Golub, LeVeque 1983), which does not subtract large sums of squares from one another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from offline.calibration.expert_blocks import ExpertBlocks
from offline.calibration.outliers import margin
from offline.calibration.statistics import WEIGHT_BINS, LayerStatistics
from vllm_moe_prune.errors import PruneError

_ALSO = ("counts", "scores", "weights", "logit_gram", "pairs", "mean", "deviations")
ARRAYS = (*_ALSO, "units", "norms", "weighted_norms", "outliers", "peaks", "vocabulary")


class LayerAccumulator:
    """What the tokens of one domain show of one layer with E experts and hidden size D.

    :param vocab: V, the number of token ids
    :param device: where the sums are kept and where steps are expected
    """

    def __init__(
        self, num_experts: int, hidden: int, vocab: int, *, device: torch.device | str
    ) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.num_experts, self.hidden = num_experts, hidden
        self.tokens = 0
        self.counts = zeros(num_experts)
        self.scores = zeros(num_experts)
        self.weights = zeros(num_experts)
        self.weight_bins = zeros(num_experts * WEIGHT_BINS)
        self.logit_gram = zeros(num_experts, num_experts)
        self.pairs = zeros(num_experts, num_experts)
        self.vocabulary = torch.zeros(num_experts, vocab, dtype=torch.bool, device=device)
        self.mean = zeros(num_experts, hidden)
        self.deviations = zeros(num_experts, hidden)
        self.units = zeros(num_experts, hidden)
        self.norms = zeros(num_experts)
        self.weighted_norms = zeros(num_experts)
        self.peaks = zeros(num_experts)
        self.outliers = zeros(num_experts)
        self._limits: tuple[Tensor, Tensor] | None = None  # of what is no outlier

    def add_routing(
        self, token_ids: Tensor, logits: Tensor, scores: Tensor, weights: Tensor, ids: Tensor
    ) -> None:
        """Note how the router spread T tokens.

        :param token_ids: [T] what the tokens are, in 0..V-1
        :param logits: [T, E] of the router
        :param scores: [T, E] after its score function
        :param weights: [T, k] with which the chosen experts' outputs are added up
        :param ids: [T, k] the chosen experts, all different for one token
        """
        num_tokens, top_k = ids.shape
        ids, flat, exact = ids.long(), ids.flatten().long(), weights.double()
        self.tokens += num_tokens
        spread = logits.new_zeros(logits.shape, dtype=torch.float32)
        chosen = spread.scatter(1, ids, 1.0)  # [T, E]; a step has less than 2^24 tokens
        self.pairs += (chosen.T @ chosen).fill_diagonal_(0.0)
        self.scores += scores.sum(dim=0, dtype=torch.float64)
        wide = logits.double()
        self.logit_gram.addmm_(wide.T, wide)
        self.weights.index_add_(0, flat, exact.flatten())
        # Weights that a model scales beyond 1 count in the last bin.
        bins = (exact * WEIGHT_BINS).long().clamp_(0, WEIGHT_BINS - 1)
        places = (ids * WEIGHT_BINS).add_(bins).flatten()
        self.weight_bins.index_add_(0, places, torch.ones_like(exact).flatten())
        self.vocabulary[flat, token_ids.repeat_interleave(top_k)] = True

    def add_outputs(self, blocks: ExpertBlocks, outputs: Tensor, weights: Tensor) -> None:
        """Note what the experts gave.

        :param blocks: of the ids [T, k] that were routed to
        :param outputs: [T, k, D] of the chosen experts, as they are before they are weighted
        :param weights: [T, k] with which the block adds them up: the routing weights, or 1 where
            those multiply the inputs
        """
        self._limits = None
        rows, given = outputs.flatten(0, 1), weights.flatten().double()
        found = [self._sums(part, rows) for part in blocks.pieces(self.hidden)]
        lengths, sums, within, peaks = (torch.cat(one) for one in zip(*found, strict=True))
        experts, counts = blocks.experts, blocks.counts
        lengths = lengths * blocks.real
        self.norms.index_add_(0, experts, lengths.sum(1, dtype=torch.float64))
        self.weighted_norms.index_add_(0, experts, (given[blocks.pairs] * lengths).sum(1))
        peaks = peaks.double().masked_fill_(counts == 0, 0.0)
        self.peaks.scatter_reduce_(0, experts, peaks, "amax")
        self.units.index_add_(0, experts, sums[:, 1])
        self._join(experts, counts, sums[:, 0], within.double())

    def _sums(self, part: ExpertBlocks, rows: Tensor) -> tuple[Tensor, ...]:
        """Return of each block: lengths [B, b], the sums [B, 2, D] of rows and of their directions
        in float64, that of squared deviations from its mean [B, D], and the peak [B]."""
        values = _wide(rows, part)  # [B, b, D]
        lengths = torch.linalg.vector_norm(values, dim=2)
        # An output of zero has no direction: it adds nothing.
        inverse = part.real / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)
        factors = torch.stack((part.real.to(values.dtype), inverse), dim=1)  # [B, 2, b]
        sums = (factors @ values).double()
        low, high = torch.aminmax(values.flatten(1), dim=1)
        mean = sums[:, :1] / part.counts.clamp_min(1)[:, None, None]
        within = factors[:, :1] @ values.sub_(mean.to(values.dtype)).square_()
        return lengths, sums, within[:, 0], torch.maximum(high, -low)

    def _join(self, experts: Tensor, counts: Tensor, sums: Tensor, within: Tensor) -> None:
        """Join mean and squared deviations of blocks, and with those of the steps before (Chan)."""
        new = torch.zeros_like(self.counts).index_add_(0, experts, counts)[:, None]
        mean = torch.zeros_like(self.mean).index_add_(0, experts, sums) / new.clamp_min(1)
        apart = sums / counts.clamp_min(1)[:, None] - mean[experts]
        self.deviations.index_add_(0, experts, within.addcmul(apart.square_(), counts[:, None]))
        before, total = self.counts[:, None], self.counts[:, None] + new
        share, shift = new / total.clamp_min(1), mean - self.mean
        self.mean.addcmul_(shift, share)
        self.deviations.addcmul_(shift.square_(), before * share)
        self.counts += new[:, 0]

    def count_outliers(self, blocks: ExpertBlocks, outputs: Tensor) -> None:
        """Count the outliers of outputs [T, k, D], once all of the domain have been added."""
        if self._limits is None:
            self._limits = self._thresholds(outputs.dtype)
        low, high = self._limits
        rows, found = outputs.flatten(0, 1), []
        for part in blocks.pieces(self.hidden):
            values = _rows(rows, part).to(low.dtype)
            within = values.clamp(low[part.experts][:, None], high[part.experts][:, None])
            found.append(within.ne_(values).sum(dim=2))  # 1 where it is beyond
        beyond = (torch.cat(found) * blocks.real).sum(1, dtype=torch.float64)
        self.outliers.index_add_(0, blocks.experts, beyond)

    def _thresholds(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the least and the greatest entry [E, D] that is no outlier.

        In float32 for outputs that have no more bits: rounded inwards, they divide such numbers as
        the exact ones do.
        """
        sigma = (self.deviations / self.counts.clamp_min(1)[:, None]).sqrt()
        width = margin(self.mean, sigma)
        low, high = self.mean - width, self.mean + width
        if dtype == torch.float64:
            return low, high
        inwards = low.float(), high.float()
        up, down = (torch.full_like(inwards[0], sign * torch.inf) for sign in (1, -1))
        return (
            torch.where(inwards[0] < low, inwards[0].nextafter(up), inwards[0]),
            torch.where(inwards[1] > high, inwards[1].nextafter(down), inwards[1]),
        )

    def arrays(self) -> dict[str, Tensor]:
        """Return the sums in host memory, by the names of `LayerStatistics`."""
        found = {name: getattr(self, name).cpu() for name in ARRAYS}
        bins = self.weight_bins.view(-1, WEIGHT_BINS).cpu()
        return {**found, "weight_bins": bins, "tokens": torch.tensor(float(self.tokens)).double()}


def _rows(rows: Tensor, part: ExpertBlocks) -> Tensor:
    """Return the rows [B, b, D] of some blocks."""
    return rows.index_select(0, part.pairs.flatten()).view(*part.pairs.shape, -1)


def _wide(rows: Tensor, part: ExpertBlocks) -> Tensor:
    """Return them to be added up: in float32 if they have 16 bits, else in float64."""
    return _rows(rows, part).to(torch.float32 if rows.element_size() == 2 else torch.float64)


def statistics_of(arrays: dict[str, np.ndarray], layer: int) -> LayerStatistics:
    """Return the statistics that arrays of a `LayerAccumulator` hold.

    :raises PruneError: if an expert gave a value that is not finite
    """
    found: dict[str, Any] = {**arrays, "tokens": float(arrays["tokens"])}
    seen = LayerStatistics(**found)
    wrong = ~(np.isfinite(seen.peaks) & np.isfinite(seen.deviations).all(axis=1))
    if wrong.any():
        raise PruneError(
            f"layer {layer}: expert {int(wrong.argmax())} gave outputs that are not finite",
            hint="compute in bfloat16 or float32 (--dtype)",
        )
    return seen
