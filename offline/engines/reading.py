"""`Reading`: what a model expects, token by token, of a text that it reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Reading:
    """One text of L + 1 tokens, of which the first is given; logarithms in nats.

    ``log_probs`` [L] are those of the tokens that follow, ``greatest`` [L] those of the likeliest
    in their places. ``tokens`` [L, K] are the K likeliest or those that were asked for, and
    ``listed`` [L, K] their log-probabilities: NaN where a server does not tell one, which is then
    at most ``least`` [L].
    """

    log_probs: NDArray[np.float64]
    greatest: Floats
    tokens: Ids
    listed: Floats
    least: Floats | None = None


def same_first(base: Reading, other: Reading) -> NDArray[np.bool_]:
    """Return where the base's likeliest token is the other's as well [L]; a tie counts."""
    return np.asarray(other.listed[:, 0] >= other.greatest)


def divergence(base: Reading, other: Reading) -> NDArray[np.float64]:
    """Return KL(base || other) in nats [L], over the base's listed tokens and all others as one.

    That is never more than the whole KL (docs/decisions/0034-listed-tokens.md). Where the other
    does not tell a token's log-probability, the most that it can be is taken: less, never more.
    """
    p_log, q_log = base.listed.astype(np.float64), other.listed.astype(np.float64)
    told = ~np.isnan(q_log)
    q = np.where(told, np.exp(np.where(told, q_log, 0.0)), 0.0)
    if other.least is not None:
        q_log = np.where(told, q_log, other.least[:, None])
    p = np.exp(p_log)
    rest_p = np.clip(1 - p.sum(axis=1), 0.0, None)
    rest_q = np.clip(1 - q.sum(axis=1), 1e-12, None)
    rest = np.where(rest_p > 0, rest_p * (np.log(np.maximum(rest_p, 1e-300)) - np.log(rest_q)), 0)
    return np.asarray(np.maximum((p * (p_log - q_log)).sum(axis=1) + rest, 0.0))
