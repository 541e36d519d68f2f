from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.metrics import Quantiles, Record, quantiles, read_records, summarise
from vllm_moe_prune.errors import PruneError


def record(started: float = 0.0, **fields: object) -> Record:
    values: dict[str, object] = {"arrivals": (0.5, 0.6, 0.8), "ended": 1.0, "output_tokens": 4}
    return Record.model_validate({"kind": "chat", "started": started, **values, **fields})


def test_one_record_by_hand() -> None:
    one = record()
    assert one.ttft_ms == 500
    assert one.itl_ms == pytest.approx([100, 200])
    assert one.e2e_ms == 1000
    assert one.tokens == 4
    assert one.tokens_per_second == 4


def test_chunks_count_where_the_server_has_not_counted() -> None:
    assert record(output_tokens=None).tokens == 3


def test_no_chunk_no_time_to_first_token() -> None:
    assert record(arrivals=()).ttft_ms is None
    assert record(arrivals=()).itl_ms == []


def test_quantiles_interpolate_linearly() -> None:
    assert quantiles([1, 2, 3, 4, 5]) == Quantiles(p50=3, p95=4.8)
    assert quantiles([]) is None


def test_summary_by_hand() -> None:
    records = [
        record(10.0),
        record(10.5, arrivals=(0.3, 0.4), ended=1.5, output_tokens=6),
        record(11.0, arrivals=(0.2, 0.3), ended=3.0, output_tokens=None, cut=True),
        record(11.0, arrivals=(), ended=0.1, output_tokens=None, error="HTTP 503"),
    ]
    summary = summarise(records, users=2)
    assert (summary.requests, summary.errors, summary.cut) == (2, 1, 1)
    assert summary.first_error == "HTTP 503"
    assert summary.seconds == pytest.approx(4.0)  # 10.0 to 11.0 + 3.0
    assert summary.output_tokens_per_second == pytest.approx((4 + 6 + 2) / 4.0)
    assert summary.requests_per_second == pytest.approx(0.5)
    assert summary.output_tokens_mean == 5
    assert summary.ttft_ms == Quantiles(p50=400, p95=490)
    assert summary.itl_ms is not None and summary.itl_ms.p50 == pytest.approx(100)
    assert summary.e2e_ms == Quantiles(p50=1250, p95=1475)


def test_summary_of_nothing_has_no_latencies_and_divides_by_nothing() -> None:
    summary = summarise([], users=1)
    assert summary.output_tokens_per_second == 0
    assert summary.ttft_ms is None


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30))
def test_gaps_add_up_to_the_time_between_first_and_last_chunk(times: list[float]) -> None:
    arrivals = tuple(sorted(times))
    one = record(arrivals=arrivals, ended=arrivals[-1])
    assert sum(one.itl_ms) == pytest.approx((arrivals[-1] - arrivals[0]) * 1000, abs=1e-6)
    assert len(one.itl_ms) == len(arrivals) - 1


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_quantiles_lie_between_the_extremes_and_in_order(values: list[float]) -> None:
    found = quantiles(values)
    assert found is not None
    assert min(values) <= found.p50 <= found.p95 <= max(values)


def test_missing_records_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="no request records"):
        read_records(tmp_path / "absent.jsonl")
