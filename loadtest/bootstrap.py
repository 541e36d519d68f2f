"""Intervals of ratios: which values would also have come out.

Both sides are sent the same requests, so a ratio is taken of the same requests on both sides. Two
things vary. Other requests might have been drawn: that is seen within a round, by a bootstrap over
its requests, the same ones on both sides. And the machine does something else from one lifetime of
a server to the next: that is seen between rounds only, and few rounds hold no more than Student's t
says of their logarithms (the range of three rounds leaves the truth out in a quarter of all cases,
so no bootstrap over rounds can do better: decision 40). The interval has the wider end of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from loadtest.metrics import Record

_DRAWS = 1000
# 97.5th percentile of t with 1, 2, ... degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_Z = 1.959964
_ENDS = (2.5, 97.5)

Floats = NDArray[np.float64]
Numbers = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Sample:
    """The answered requests of one measurement, in the order of a list of keys."""

    ttft: Floats
    tpot: Floats
    e2e: Floats
    answer: Floats
    tokens: Floats
    prompt: Floats
    decode_tokens: Floats
    decode_seconds: Floats
    gaps: tuple[Floats, ...]

    @staticmethod
    def of(records: Sequence[Record]) -> Sample:
        """Read them from records."""

        def column(read: Callable[[Record], float | None]) -> Floats:
            values = (read(record) for record in records)
            return np.array([math.nan if v is None else v for v in values], dtype=np.float64)

        return Sample(
            ttft=column(lambda r: r.ttft_ms),
            tpot=column(lambda r: r.tpot_ms),
            e2e=column(lambda r: r.e2e_ms),
            answer=column(lambda r: r.answer_ms),
            tokens=column(lambda r: float(r.tokens)),
            prompt=column(lambda r: float(r.prompt_tokens or 0)),
            decode_tokens=column(lambda r: float(r.decode_tokens)),
            decode_seconds=column(lambda r: r.decode_seconds),
            gaps=tuple(np.diff(r.arrivals) * 1000 for r in records),
        )


def pair(base: Sequence[Record], candidate: Sequence[Record]) -> tuple[Sample, Sample]:
    """The requests that both sides answered, in one order."""
    sides = [
        {(r.kind, r.index, r.turn): r for r in side if r.complete} for side in (base, candidate)
    ]
    keys = sorted(sides[0].keys() & sides[1].keys())
    first, second = (Sample.of([side[key] for key in keys]) for side in sides)
    return first, second


Statistic = Callable[[Sample, Numbers], Floats]


def _percentile(column: str, percent: float) -> Statistic:
    def read(sample: Sample, draws: Numbers) -> Floats:
        values = getattr(sample, column)[draws]
        if not np.isnan(values).any():
            every: Floats = np.percentile(values, percent, axis=1)
            return every
        missing = np.isnan(values).all(axis=1)
        found: Floats = np.full(len(draws), math.nan)
        if not missing.all():
            found[~missing] = np.nanpercentile(values[~missing], percent, axis=1)
        return found

    return read


def _gaps(percent: float) -> Statistic:
    def read(sample: Sample, draws: Numbers) -> Floats:
        found = []
        for draw in draws:
            gaps = np.concatenate([sample.gaps[i] for i in draw]) if draw.size else np.empty(0)
            found.append(np.percentile(gaps, percent) if gaps.size else math.nan)
        return np.array(found)

    return read


def _share(above: str, below: str) -> Statistic:
    def read(sample: Sample, draws: Numbers) -> Floats:
        over = np.nansum(getattr(sample, above)[draws], axis=1)
        under = np.nansum(getattr(sample, below)[draws], axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Floats = over / under
        return found

    return read


def _mean(sample: Sample, draws: Numbers) -> Floats:
    found: Floats = np.nanmean(sample.tokens[draws], axis=1)
    return found


# How each metric of a measurement is computed of drawn requests. In a closed loop the throughput is
# the users' tokens over the users' time (Little's law), but for the end when some users are done.
STATISTICS: dict[str, Statistic] = {
    "output_tokens_per_second": _share("tokens", "e2e"),
    "prefill_tokens_per_second": _share("prompt", "ttft"),
    "decode_tokens_per_second": _share("decode_tokens", "decode_seconds"),
    "ttft_ms_p50": _percentile("ttft", 50),
    "ttft_ms_p95": _percentile("ttft", 95),
    "answer_ms_p50": _percentile("answer", 50),
    "tpot_ms_p50": _percentile("tpot", 50),
    "tpot_ms_p95": _percentile("tpot", 95),
    "itl_ms_p50": _gaps(50),
    "itl_ms_p95": _gaps(95),
    "e2e_ms_p50": _percentile("e2e", 50),
    "e2e_ms_p95": _percentile("e2e", 95),
    "output_tokens_mean": _mean,
}


def interval(
    metric: str,
    rounds: Sequence[tuple[Sample, Sample]] | None,
    ratios: Sequence[float],
    seed: int = 0,
) -> tuple[float, float] | None:
    """The 95 % interval of a metric's ratio.

    :param rounds: the requests of each round; None where the metric is not one of requests
    :param ratios: the ratio that was measured in each round; all above 0
    :returns: None where there is nothing to draw from: no request, or one round without any
    """
    if min(ratios) <= 0:
        return None
    logs = np.log(ratios)
    parts = [part for part in (_of_requests(metric, rounds, seed), _of_rounds(logs)) if part]
    if not parts:
        return None
    low, high = min(part[0] for part in parts), max(part[1] for part in parts)
    middle, measured = logs.mean(), median(ratios)
    # Where rounds are many, the median may lie outside of what their mean can be.
    low, high = float(np.exp(middle + low)), float(np.exp(middle + high))
    return min(low, measured), max(high, measured)


def _of_requests(
    metric: str, rounds: Sequence[tuple[Sample, Sample]] | None, seed: int
) -> tuple[float, float] | None:
    """How far the rounds' mean logarithm may lie from what it is, by a bootstrap over requests."""
    statistic = STATISTICS.get(metric)
    if statistic is None or not rounds or any(not base.ttft.size for base, _ in rounds):
        return None
    rng = np.random.default_rng(seed)
    number = 200 if metric.startswith("itl") else _DRAWS
    total = np.zeros(number)
    for base, candidate in rounds:
        size = base.ttft.size
        draws = rng.integers(0, size, (number, size))
        whole = np.arange(size)[None, :]
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = np.log(statistic(candidate, draws) / statistic(base, draws))
            total += drawn - np.log(statistic(candidate, whole) / statistic(base, whole))
    total = total[np.isfinite(total)] / len(rounds)
    if not total.size:
        return None
    low, high = np.percentile(total, _ENDS)
    return float(low), float(high)


def _of_rounds(logs: Floats) -> tuple[float, float] | None:
    """The same by what the rounds differ."""
    freedom = len(logs) - 1
    if not freedom:
        return None
    t = _T[freedom - 1] if freedom <= len(_T) else _Z * (1 + (_Z**2 + 1) / (4 * freedom))
    far = float(t * logs.std(ddof=1) / math.sqrt(len(logs)))
    return -far, far
