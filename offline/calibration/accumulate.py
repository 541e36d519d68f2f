"""Streaming accumulators of one layer: routing and expert outputs in, chunk by chunk, sums out.

All sums are in float64. Means and squared deviations are joined by Chan's formula (Chan, Golub,
LeVeque 1983), which does not subtract large sums of squares from one another.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offline.calibration.outliers import RecordedOutputs, count_outliers
from offline.calibration.statistics import (
    WEIGHT_BINS,
    Floats,
    GradientStatistics,
    LayerStatistics,
)
from vllm_moe_prune.errors import PruneError

_FIRST_JOIN = 64  # tokens of an expert


class LayerAccumulator:
    """What the tokens of one domain show of one layer with E experts and hidden size D.

    The outputs of an expert may be cut into chunks in any way: up to rounding, results do not
    depend on the cuts.

    :param vocab: V, the number of token ids
    :param device: where the sums are kept and where chunks are expected
    :param recorded: what keeps the outputs until outliers are counted; what is in it is forgotten
    """

    def __init__(
        self,
        num_experts: int,
        hidden: int,
        vocab: int,
        *,
        device: torch.device | str,
        recorded: RecordedOutputs,
    ) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self._tokens = 0
        self._assignments = 0
        self._seen = [0] * num_experts  # tokens whose outputs came, by expert
        self._counts = torch.zeros(num_experts, dtype=torch.int64, device=device)
        self._scores = zeros(num_experts)
        self._weights = zeros(num_experts)
        self._weight_bins = torch.zeros(num_experts * WEIGHT_BINS, dtype=torch.int64, device=device)
        self._logit_gram = zeros(num_experts, num_experts)
        self._pairs = zeros(num_experts, num_experts)
        self._vocabulary = torch.zeros(num_experts, vocab, dtype=torch.bool, device=device)
        self._mean = zeros(num_experts, hidden)
        self._deviations = zeros(num_experts, hidden)
        self._units = zeros(num_experts, hidden)
        self._norms = zeros(num_experts)
        self._weighted_norms = zeros(num_experts)
        self._peaks = zeros(num_experts)
        self._recorded = recorded
        recorded.clear()

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
        self._tokens += num_tokens
        self._assignments += num_tokens * top_k
        exact = weights.double()
        spread = logits.new_zeros(logits.shape, dtype=torch.float64)
        chosen = spread.scatter(1, ids, 1.0)  # [T, E]
        self._counts += torch.bincount(ids.flatten(), minlength=len(self._counts))
        self._scores += scores.sum(dim=0, dtype=torch.float64)
        self._weights += spread.scatter(1, ids, exact).sum(dim=0)
        # Weights that a model scales beyond 1 count in the last bin.
        bins = (exact * WEIGHT_BINS).long().clamp(0, WEIGHT_BINS - 1)
        places = (ids * WEIGHT_BINS + bins).flatten()
        self._weight_bins += torch.bincount(places, minlength=len(self._weight_bins))
        self._logit_gram += logits.double().T @ logits.double()
        self._pairs += chosen.T @ chosen
        self._vocabulary[ids.flatten(), token_ids.repeat_interleave(top_k)] = True

    def add_outputs(self, expert: int, outputs: Tensor, weights: Tensor) -> None:
        """Note what one expert gave for the next t of its tokens.

        :param outputs: [t, D] rows of A_p, as they are before they are weighted
        :param weights: [t] with which the block adds them up: the routing weights, or 1 where
            those multiply the inputs
        """
        assert len(outputs) == len(weights), (len(outputs), len(weights))
        self._recorded.add(expert, outputs)
        while len(outputs):
            # Sums are joined at these numbers of tokens, whatever the chunks: 64, 128, 256, ...
            seen = self._seen[expert]
            size = min(max(_FIRST_JOIN, 1 << seen.bit_length()) - seen, len(outputs))
            self._add(expert, outputs[:size].detach(), weights[:size].detach())
            outputs, weights = outputs[size:], weights[size:]

    def _add(self, expert: int, outputs: Tensor, weights: Tensor) -> None:
        rows = outputs.double()
        lengths = torch.linalg.vector_norm(rows, dim=1)  # [t]
        # An output of zero has no direction: it adds nothing.
        inverse = torch.where(lengths > 0, 1.0 / lengths, 0.0)
        sums = torch.stack((torch.ones_like(inverse), inverse)) @ rows  # [2, D] in one reading
        self._units[expert] += sums[1]
        self._norms[expert] += lengths.sum()
        self._weighted_norms[expert] += weights.double() @ lengths
        self._join(expert, rows, sums[0] / len(rows))
        low, high = torch.aminmax(outputs)
        peak = torch.maximum(high, -low).double()
        self._peaks[expert] = torch.maximum(self._peaks[expert], peak)

    def _join(self, expert: int, rows: Tensor, mean: Tensor) -> None:
        """Join mean and squared deviations of the rows with those of the tokens before."""
        before, new = self._seen[expert], len(rows)
        total = self._seen[expert] = before + new
        within = torch.linalg.vector_norm(rows - mean, dim=0).square()
        shift = mean - self._mean[expert]
        self._mean[expert] += shift * (new / total)
        self._deviations[expert] += within + shift.square() * (before * new / total)

    def finish(self, gradient: GradientStatistics | None = None) -> LayerStatistics:
        """Return the sums; more may be added afterwards.

        :raises PruneError: if an expert gave a value that is not finite
        """
        assert int(self._counts.sum()) == self._assignments, "assignments are not tokens x top-k"
        assert self._counts.tolist() == self._seen, "outputs are not those of the routed tokens"
        self._check_finite()
        outliers = count_outliers(self._recorded, self._mean, self._deviations, self._counts)
        pairs = _numpy(self._pairs)
        np.fill_diagonal(pairs, 0.0)
        return LayerStatistics(
            tokens=float(self._tokens),
            counts=_numpy(self._counts),
            scores=_numpy(self._scores),
            weights=_numpy(self._weights),
            weight_bins=_numpy(self._weight_bins.view(-1, WEIGHT_BINS)),
            logit_gram=_numpy(self._logit_gram),
            pairs=pairs,
            vocabulary=_booleans(self._vocabulary),
            mean=_numpy(self._mean),
            deviations=_numpy(self._deviations),
            units=_numpy(self._units),
            norms=_numpy(self._norms),
            weighted_norms=_numpy(self._weighted_norms),
            outliers=_numpy(outliers),
            peaks=_numpy(self._peaks),
            gradient=gradient,
        )

    def _check_finite(self) -> None:
        finite = self._deviations.isfinite().all(dim=1) & self._peaks.isfinite()
        if not bool(finite.all()):
            expert = int((~finite).nonzero()[0])
            raise PruneError(
                f"expert {expert} gave outputs that are not finite",
                hint="compute in bfloat16 or float32 (--dtype)",
            )


def _numpy(values: Tensor) -> Floats:
    """Return a copy as float64 in the host's memory."""
    return np.array(values.cpu().numpy(), dtype=np.float64)


def _booleans(values: Tensor) -> NDArray[np.bool_]:
    return np.array(values.cpu().numpy(), dtype=np.bool_)
