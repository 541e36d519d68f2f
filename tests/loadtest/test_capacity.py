"""The search for a server's capacity, and what a bound is missed by."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from loadtest.capacity import Bounds, Capacity, bisect, capacity_command, misses
from loadtest.metrics import Record, Slo, summarise
from tests.loadtest.scripted import Script, scripted


@pytest.mark.parametrize("limit", [1.0, 3.3, 17.0, 63.9])
def test_the_limit_is_found_within_the_precision_in_few_steps(limit: float) -> None:
    tried: list[float] = []

    def met(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    good, bad = bisect(Bounds(0.5, 64, 0.05), met)
    assert good is not None and bad is not None
    assert good <= limit < bad and bad - good <= 0.05 * good
    assert len(tried) <= 13 and len(set(tried)) == len(tried)


def test_a_limit_outside_of_the_bounds_is_said() -> None:
    assert bisect(Bounds(1, 10, 0.1), lambda rate: False) == (None, 1)
    assert bisect(Bounds(1, 10, 0.1), lambda rate: True) == (10, None)


def test_why_a_rate_is_too_much() -> None:
    good = Record(kind="chat", started=0, arrivals=(0.5, 0.6), ended=1.0, output_tokens=2)
    bad = good.model_copy(update={"error": "HTTP 503"})
    assert list(misses(summarise([good], 1), Slo(ttft_ms=600))) == []
    assert list(misses(summarise([good], 1), Slo(ttft_ms=400, e2e_ms=2000))) == [
        "p95 ttft_ms 500, limit 400"
    ]
    told = list(misses(summarise([bad], 1), Slo(ttft_ms=400)))
    assert told == ["1 requests failed: HTTP 503", "no request was answered"]


@pytest.mark.slow
def test_a_real_search(tmp_path: Path) -> None:
    with scripted(Script(first=0.05, gap=0.01, only="plain")) as server:
        arguments = ["--host", server.url, "--out", str(tmp_path), "--slo-ttft-ms", "2000"]
        arguments += ["--low", "2", "--high", "4", "--seconds", "2", "--client-lag-ms", "0"]
        done = CliRunner().invoke(capacity_command, [*arguments, "--max-tokens", "4"])
    assert done.exit_code == 0, done.output
    assert "4 requests/s meet the bounds, nothing above was tried" in done.output
    found = Capacity.model_validate_json((tmp_path / "capacity.json").read_text())
    assert [step.rate for step in found.steps] == [2, 4] and all(s.met for s in found.steps)


def test_no_bound_is_one_line(tmp_path: Path) -> None:
    arguments = ["--host", "http://127.0.0.1:9", "--out", str(tmp_path)]
    done = CliRunner().invoke(capacity_command, arguments)
    assert done.exit_code == 1 and "no SLO to meet" in done.output
