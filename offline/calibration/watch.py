"""Watches the experts of one layer at work: the model's own routing, and each expert's outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from offline.calibration.walk import TextBatch, restore_forward
from offline.engines.local.experts import LayerControl
from vllm_moe_prune.routing import scores


class Accumulator(Protocol):
    """What becomes of that (see `RecordedLayer`); T tokens, E experts, D hidden dimensions."""

    def add_routing(
        self,
        token_ids: torch.Tensor,
        logits: torch.Tensor,
        scores: torch.Tensor,
        weights: torch.Tensor,
        ids: torch.Tensor,
    ) -> None:
        """Take token ids [T], logits and scores [T, E], routing weights and expert ids [T, k]."""

    def add_outputs(self, ids: torch.Tensor, outputs: torch.Tensor, weights: torch.Tensor) -> None:
        """Take outputs [T, k, D] of the chosen experts [T, k], and their weights [T, k]."""


@dataclass(slots=True)
class Watch:
    """Stands in for the experts of a layer while its block runs.

    The block itself decides on the routing, so whatever a family does there (softmax or sigmoid,
    a correction bias, groups, a scaling factor) is what is seen.
    """

    control: LayerControl
    accumulator: Accumulator | None = None
    token_ids: torch.Tensor | None = None  # [T]
    _logits: torch.Tensor | None = None  # [T, E]

    def expect(self, batch: TextBatch) -> None:
        """Say which batch comes next."""
        self.token_ids = batch.token_ids.flatten().to(self.control.device)

    def note_logits(self, _: Any, __: Any, output: Any) -> None:
        """Take the router's output."""
        self._logits = self.control.adapter.read(output).logits

    def forward(
        self, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Return the block's output [T, D] from its input [T, D], ids and weights [T, k].

        Every (token, expert) pair is computed as a token of its own with weight 1, by the fused
        experts at once. Where weights belong to the inputs it is the other way round: a pair has
        its weight there, and its output weight 1.
        """
        accumulator, token_ids, logits = self.accumulator, self.token_ids, self._logits
        assert accumulator is not None and token_ids is not None and logits is not None
        score = scores(logits, self.control.layout.score)
        accumulator.add_routing(token_ids, logits, score, weights, ids)
        before, after = torch.ones_like(weights), weights
        if self.control.layout.weights_on_input:
            before, after = after, before
        rows = hidden.repeat_interleave(ids.shape[1], dim=0)  # [T k, D]
        outputs: torch.Tensor = self._experts(rows, ids.reshape(-1, 1), before.reshape(-1, 1))
        outputs = outputs.view(*ids.shape, -1)
        accumulator.add_outputs(ids, outputs, after)
        return (outputs * after[:, :, None]).sum(dim=1).to(hidden.dtype)

    def _experts(self, *given: torch.Tensor) -> Any:
        return type(self.control.experts).forward(self.control.experts, *given)


@contextmanager
def watching(control: LayerControl) -> Iterator[Watch]:
    """Give the watch of a layer; it needs an ``accumulator``, and to ``expect`` each batch."""
    watch, experts = Watch(control), control.experts
    own = experts.__dict__.get("forward")
    hook = control.router.register_forward_hook(watch.note_logits)
    experts.forward = watch.forward
    try:
        yield watch
    finally:
        restore_forward(experts, own)
        hook.remove()
