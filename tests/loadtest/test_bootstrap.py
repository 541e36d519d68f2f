"""Intervals of ratios: they hold the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.bootstrap import STATISTICS, Sample, interval, pair
from loadtest.metrics import Record


def records(
    rng: np.random.Generator, scale: float, number: int = 16, tokens: int = 10
) -> list[Record]:
    found = []
    for index in range(number):
        first = scale * 0.2 * rng.lognormal(0, 0.1)
        arrivals = first + scale * np.concatenate(
            [[0], np.cumsum(rng.lognormal(-4, 0.2, tokens - 1))]
        )
        found.append(
            Record(
                kind="chat",
                index=index,
                started=0.0,
                arrivals=tuple(arrivals),
                ended=float(arrivals[-1]),
                output_tokens=tokens,
                prompt_tokens=50,
            )
        )
    return found


def measured(metric: str, base: Sample, candidate: Sample) -> float:
    whole = np.arange(base.ttft.size)[None, :]
    statistic = STATISTICS[metric]
    return float((statistic(candidate, whole) / statistic(base, whole))[0])


# Of 64 requests the rounds vary more than the requests do.
@pytest.mark.parametrize(("rounds", "number"), [(2, 64), (3, 16)])
def test_a_server_against_itself_has_1_within_the_interval(rounds: int, number: int) -> None:
    metrics = ("ttft_ms_p50", "tpot_ms_p95", "e2e_ms_p50", "output_tokens_per_second")
    held = 0
    for run in range(20):
        rng = np.random.default_rng(run)
        drift = [rng.normal(0, 0.03, 2) for _ in range(rounds)]  # the machine, from round to round
        pairs = [pair(*(records(rng, 1 + one, number) for one in both)) for both in drift]
        for metric in metrics:
            values = [measured(metric, *one) for one in pairs]
            ends = interval(metric, pairs, values, seed=run)
            assert ends is not None and ends[0] <= np.median(values) <= ends[1]
            held += ends[0] <= 1 <= ends[1]
    assert held >= 0.9 * 20 * len(metrics)


def test_one_that_is_twice_as_fast_is_so_in_every_row_and_not_1() -> None:
    pairs = [
        pair(records(np.random.default_rng(n), 1), records(np.random.default_rng(n), 0.5))
        for n in range(3)
    ]
    for metric in STATISTICS:
        if metric.startswith("answer"):
            continue
        true = {"output_tokens_mean": 1.0}.get(metric, 2.0 if "per_second" in metric else 0.5)
        values = [measured(metric, *one) for one in pairs]
        assert values == pytest.approx([true] * 3)
        low, high = interval(metric, pairs, values) or (0, 0)
        assert low == pytest.approx(true) == high  # the same requests on both sides: no spread


def test_only_requests_that_both_sides_answered_are_compared() -> None:
    rng = np.random.default_rng(0)
    base, candidate = records(rng, 1), records(rng, 1)
    candidate[3] = candidate[3].model_copy(update={"error": "no"})
    sides = pair(base, list(reversed(candidate)))
    assert [side.ttft.size for side in sides] == [15, 15]
    assert sides[0].ttft[3] == pytest.approx(base[4].ttft_ms)
    assert sides[1].ttft[3] == pytest.approx(candidate[4].ttft_ms)


def test_nothing_to_draw_from_has_no_interval() -> None:
    empty = pair([], [])
    assert interval("ttft_ms_p50", [empty], [1.0]) is None
    assert interval("startup_seconds", None, [1.0]) is None
    assert interval("startup_seconds", None, [0.0, 1.0]) is None


def test_what_has_no_requests_has_the_interval_of_its_rounds() -> None:
    """Student's t by hand: 4.303 times the deviation of three logarithms by the root of three."""
    found = interval("peak_bytes", None, np.exp([0.1, 0.2, 0.3]).tolist())
    assert found == pytest.approx(np.exp([0.2 - 4.303 * 0.1 / 3**0.5, 0.2 + 4.303 * 0.1 / 3**0.5]))


def test_the_median_lies_within_also_where_one_of_many_rounds_is_far_off() -> None:
    ratios = [1.0] * 20 + [50.0]
    low, high = interval("peak_bytes", None, ratios) or (0, 0)
    assert low <= 1.0 <= high
