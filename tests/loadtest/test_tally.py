"""What a running test keeps in little memory says the same as its records."""

from __future__ import annotations

import random

import pytest

from loadtest.health import Health
from loadtest.metrics import Record, Slo, summarise
from loadtest.tally import Tally


def records(number: int) -> list[Record]:
    rng = random.Random(0)
    found = []
    for index in range(number):
        arrivals, now = [], rng.uniform(0.1, 0.3)
        for _ in range(20):
            arrivals.append(now)
            now += rng.lognormvariate(-4, 0.7)
        found.append(
            Record(
                kind="chat",
                started=index / 10,
                arrivals=tuple(arrivals),
                ended=now,
                output_tokens=20,
            )
        )
    return found


def test_percentiles_are_those_of_the_records() -> None:
    found = records(200)
    tally = Tally(Slo(ttft_ms=200))
    for record in found:
        tally.add(record)
    summary = summarise(found, 1, Slo(ttft_ms=200))
    for name in ("ttft", "tpot", "e2e", "itl"):
        exact = getattr(summary, f"{name}_ms")
        assert tally.percentile(name, 50) == pytest.approx(exact.p50, rel=0.011)
        assert tally.percentile(name, 95) == pytest.approx(exact.p95, rel=0.011)
    assert tally.good / tally.elapsed == pytest.approx(summary.goodput)
    assert tally.short_gaps == pytest.approx(summary.short_gaps)


def test_outcomes_are_counted_apart_and_only_answers_measured() -> None:
    tally = Tally()
    (one,) = records(1)
    for fields in ({}, {"error": "no"}, {"cut": True}, {"cancelled": True}):
        tally.add(one.model_copy(update=fields))
    assert (tally.complete, tally.failed, tally.cut, tally.cancelled) == (1, 1, 1, 1)
    assert (
        next(row["count"] for row in tally.rows() if row["metric"].startswith("time to first t"))
        == "1"
    )
    assert "1 answered, 1 failed, 1 cut" in tally.lines()[0]


def test_chunks_that_stand_for_tokens_are_said() -> None:
    tally = Tally()
    tally.add(records(1)[0].model_copy(update={"output_tokens": None}))
    assert any("chunks stand for tokens" in line for line in tally.lines())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lag_ms_p95": 30.0}, "30 ms late"),
        ({"cpu": 0.95}, "95 % of a core"),
        ({"short_gaps": 0.5, "lag_ms_p95": 6.0}, "50 % of chunks lay ready"),
    ],
)
def test_a_client_that_could_not_keep_up_says_why(fields: dict[str, float], said: str) -> None:
    (complaint,) = Health.model_validate(fields).complaints(20)
    assert said in complaint
    assert Health.model_validate(fields).complaints(0) == []


def test_a_client_that_kept_up_says_nothing() -> None:
    # Chunks that come together are the server's or a proxy's, where the loop was on time.
    assert Health(lag_ms_p95=2, cpu=0.5, short_gaps=0.75).complaints(20) == []


def test_of_several_processes_the_worst_counts() -> None:
    worst = Health.worst([Health(lag_ms_p95=1, cpu=0.9), Health(lag_ms_p95=7, cpu=0.1)])
    assert (worst.processes, worst.lag_ms_p95, worst.cpu) == (2, 7, 0.9)
