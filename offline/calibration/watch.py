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
    """What becomes of that (see `LayerAccumulator`); T tokens, E experts, D hidden dimensions."""

    def add_routing(
        self,
        token_ids: torch.Tensor,
        logits: torch.Tensor,
        scores: torch.Tensor,
        weights: torch.Tensor,
        ids: torch.Tensor,
    ) -> None:
        """Take token ids [T], logits and scores [T, E], routing weights and expert ids [T, k]."""

    def add_outputs(self, expert: int, outputs: torch.Tensor, weights: torch.Tensor) -> None:
        """Take outputs [t, D] of an expert for its tokens, and the weights [t] of these outputs."""


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
        self.token_ids = batch.token_ids.flatten().to(self.control.experts.gate_up_proj.device)

    def note_logits(self, _: Any, __: Any, output: Any) -> None:
        """Take the router's output."""
        self._logits = self.control.adapter.read(output).logits

    def forward(
        self, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Return the block's output [T, D] from its input [T, D], ids and weights [T, k].

        Every (token, expert) pair is computed as a token of its own with weight 1, by the fused
        experts at once, sorted so that the rows of an expert lie together. Where weights belong to
        the inputs it is the other way round: a pair has its weight there, and its output weight 1.
        Tokens are taken in a random but fixed order, in which sums have always been made: scores
        keep their bits.
        """
        accumulator, token_ids, logits = self.accumulator, self.token_ids, self._logits
        assert accumulator is not None and token_ids is not None and logits is not None
        num_tokens, top_k = ids.shape
        score = scores(logits, self.control.layout.score)
        accumulator.add_routing(token_ids, logits, score, weights, ids)
        pairs = _shuffled(num_tokens, top_k).to(ids.device)  # [T k]
        experts, order = ids.flatten()[pairs].sort(stable=True)
        order = pairs[order]
        row_weights = weights.flatten()[order]
        before, after = torch.ones_like(row_weights), row_weights
        if self.control.layout.weights_on_input:
            before, after = after, before
        rows = hidden[order // top_k]
        outputs: torch.Tensor = self._experts(rows, experts[:, None], before[:, None])  # [T k, D]
        counts = torch.bincount(experts, minlength=self.control.num_experts).tolist()
        parts = zip(torch.split(outputs, counts), torch.split(after, counts), strict=True)
        for expert, (own, own_weights) in enumerate(parts):
            if len(own):
                accumulator.add_outputs(expert, own, own_weights)
        weighted = torch.empty_like(outputs, dtype=torch.result_type(outputs, weights))
        weighted[order] = outputs * after[:, None]
        return weighted.view(num_tokens, top_k, -1).sum(dim=1).to(hidden.dtype)

    def _experts(self, *given: torch.Tensor) -> Any:
        return type(self.control.experts).forward(self.control.experts, *given)


def _shuffled(num_tokens: int, top_k: int) -> torch.Tensor:
    """Return the places [T k] of (token, choice) pairs, with the tokens in a fixed random order."""
    chance = torch.Generator().manual_seed(num_tokens)
    tokens = torch.randperm(num_tokens, generator=chance)
    return (tokens[:, None] * top_k + torch.arange(top_k)).flatten()


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
