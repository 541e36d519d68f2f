"""Random passes of tokens through a layer, and how they are fed to an accumulator."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from offline.calibration.accumulate import LayerAccumulator
from offline.calibration.outliers import RecordedOutputs
from offline.calibration.recorded import RecordedLayer
from tests.calibration.naive import Pass


def random_pass(
    seed: int,
    *,
    tokens: int = 60,
    experts: int = 5,
    top_k: int = 2,
    hidden: int = 7,
    vocab: int = 23,
    skew: float = 1.0,
) -> Pass:
    """Return a pass in float32 whose experts differ in use, mean, spread and tails.

    :param skew: how much later experts are used less
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (tokens, experts)) - skew * np.arange(experts)
    logits = logits.astype(np.float32)
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = exp / exp.sum(axis=1, keepdims=True)
    ids = np.argsort(-scores, axis=1)[:, :top_k]
    outputs = []
    for expert in range(experts):
        count = int((ids == expert).sum())
        rows = rng.normal(0, 1, hidden) * 3 + rng.standard_t(4, (count, hidden))
        outputs.append((rows * 10.0 ** rng.integers(-3, 3)).astype(np.float32))
    return Pass(
        vocab=vocab,
        token_ids=rng.integers(0, vocab, tokens),
        logits=logits,
        scores=scores.astype(np.float32),
        weights=np.take_along_axis(scores, ids, axis=1).astype(np.float32),
        ids=ids,
        outputs=outputs,
    )


def outputs_of(run: Pass) -> torch.Tensor:
    """Return what every token's experts gave, [T, k, D]."""
    found = torch.empty(*run.ids.shape, run.outputs[0].shape[1])
    for expert, rows in enumerate(run.outputs):
        found[torch.from_numpy(run.ids == expert)] = torch.from_numpy(rows)
    return found


def accumulate(
    run: Pass, cuts: Sequence[int] = (), *, dtype: torch.dtype = torch.float32
) -> RecordedLayer:
    """Feed a pass to an accumulator, in steps that end at ``cuts``."""
    outputs = outputs_of(run).to(dtype)
    sums = LayerAccumulator(run.logits.shape[1], outputs.shape[2], run.vocab, device="cpu")
    found = RecordedLayer(sums, RecordedOutputs())
    edges = [0, *sorted(cuts), len(run.token_ids)]
    for start, stop in itertools.pairwise(edges):
        if start == stop:
            continue
        part = slice(start, stop)
        seen = (run.token_ids, run.logits, run.scores, run.weights, run.ids)
        routing = [torch.from_numpy(array[part]) for array in seen]
        found.add_routing(*routing)
        found.add_outputs(routing[4], outputs[part], routing[3])
    return found
