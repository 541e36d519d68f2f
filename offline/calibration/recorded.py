"""What a layer shows on one domain, whose outputs are kept for a second look."""

from __future__ import annotations

import torch

from offline.calibration.accumulate import LayerAccumulator, statistics_of
from offline.calibration.expert_blocks import ExpertBlocks
from offline.calibration.outliers import RecordedOutputs
from offline.calibration.statistics import LayerStatistics


class RecordedLayer:
    """An accumulator whose outliers are counted when all tokens have come.

    :param sums: new ones
    :param recorded: what keeps the outputs until then; what is in it is forgotten
    """

    def __init__(self, sums: LayerAccumulator, recorded: RecordedOutputs) -> None:
        self._sums, self._recorded = sums, recorded
        recorded.clear()

    def add_routing(
        self,
        token_ids: torch.Tensor,
        logits: torch.Tensor,
        scores: torch.Tensor,
        weights: torch.Tensor,
        ids: torch.Tensor,
    ) -> None:
        """Note how the router spread T tokens (see `LayerAccumulator.add_routing`)."""
        self._sums.add_routing(token_ids, logits, scores, weights, ids)

    def add_outputs(self, ids: torch.Tensor, outputs: torch.Tensor, weights: torch.Tensor) -> None:
        """Note the outputs [T, k, D] of the chosen experts [T, k], and their weights [T, k]."""
        blocks = ExpertBlocks.of(ids, self._sums.num_experts)
        self._sums.add_outputs(blocks, outputs, weights)
        self._recorded.add(blocks, outputs)

    def finish(self, layer: int) -> LayerStatistics:
        """Count the outliers and return all sums.

        :raises PruneError: if an expert of ``layer`` gave a value that is not finite
        """
        for blocks, outputs in self._recorded:
            self._sums.count_outliers(blocks, outputs)
        arrays = self._sums.arrays()
        return statistics_of({name: array.numpy() for name, array in arrays.items()}, layer)
