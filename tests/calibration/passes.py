"""Random passes of tokens through a layer, and how they are fed to an accumulator."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from offline.calibration.accumulate import LayerAccumulator
from offline.calibration.outliers import RecordedOutputs
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


def accumulate(run: Pass, cuts: Sequence[int] = ()) -> LayerAccumulator:
    """Feed a pass to an accumulator, cut into chunks of tokens at ``cuts``."""
    experts, hidden = run.logits.shape[1], run.outputs[0].shape[1]
    found = LayerAccumulator(experts, hidden, run.vocab, device="cpu", recorded=RecordedOutputs())
    edges = [0, *sorted(cuts), len(run.token_ids)]
    done = [0] * experts
    for start, stop in itertools.pairwise(edges):
        part = slice(start, stop)
        ids = torch.from_numpy(run.ids[part])
        weights = torch.from_numpy(run.weights[part])
        found.add_routing(
            torch.from_numpy(run.token_ids[part]),
            torch.from_numpy(run.logits[part]),
            torch.from_numpy(run.scores[part]),
            weights,
            ids,
        )
        for expert in range(experts):
            own = weights[ids == expert]  # in the order of tokens
            rows = run.outputs[expert][done[expert] : done[expert] + len(own)]
            done[expert] += len(own)
            found.add_outputs(expert, torch.from_numpy(rows), own)
    return found
