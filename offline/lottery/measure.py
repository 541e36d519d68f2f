"""A checkpoint on held-out text: next-token loss by domain and load of every expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from offline.calibration.corpus import Domain
from offline.engines.base import ExpertUse
from offline.results.lottery import LayerLoad, Measured

if TYPE_CHECKING:
    from offline.engines.local.transformers import TransformersEngine

_LOGIT_TOKENS = 2048  # whose logits over the vocabulary exist at the same time


def measure(
    engine: TransformersEngine, held_out: Sequence[Domain], ids: Mapping[int, Sequence[int]]
) -> Measured:
    """Take the text through the model once.

    :param ids: decoder layer -> what to call its experts, [E]
    """
    uses = {n: ExpertUse(np.zeros(len(e), np.int64), np.zeros(len(e))) for n, e in ids.items()}
    for number, layer in engine.layers.items():
        layer.use = uses[number]
    try:
        losses = {domain.name: loss_of(engine, domain.token_ids) for domain in held_out}
    finally:
        for layer in engine.layers.values():
            layer.use = None
    load = tuple(LayerLoad.of(n, ids[n], use.tokens.tolist()) for n, use in uses.items())
    return Measured(losses=losses, load=load)


def loss_of(
    engine: TransformersEngine, token_ids: np.ndarray[tuple[int, int], np.dtype[np.int64]]
) -> float:
    """Return the mean next-token loss, in nats, of sequences [N, L]."""
    ids = torch.from_numpy(token_ids)
    rows = max(1, _LOGIT_TOKENS // ids.shape[1])
    total = 0.0
    for batch in torch.split(ids, rows):
        logits = engine.logits(batch)[:, :-1]
        each = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none"
        )
        total += float(each.double().sum())
    return total / (ids.shape[0] * (ids.shape[1] - 1))
