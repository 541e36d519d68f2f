from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.metrics import Quantiles, Record, Slo, quantiles, summarise
from loadtest.records import read_records
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
    assert quantiles([1, 2, 3, 4, 5]) == Quantiles(p50=3, p95=4.8, p99=4.96)
    assert quantiles([]) is None


def test_intervals_of_percentiles_hold_them_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = np.zeros(2)
    for values in rng.lognormal(0, 1, (300, 200)):
        found = quantiles(values)
        assert found and found.p50_ends and found.p95_ends
        true = (1.0, float(np.exp(1.6448536)))
        ends = (found.p50_ends, found.p95_ends)
        held += [low <= one <= high for one, (low, high) in zip(true, ends, strict=True)]
    assert (held / 300 > 0.93).all()
    few = quantiles(range(100))
    assert few and few.p50_ends == (40, 60) and few.p95_ends is None
    assert (quantiles(range(100), ends=False) or few).p50_ends is None


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
    # 10 tokens in 5 chunks of complete answers: the 2 chunks of the one that was cut are 4.
    assert summary.output_tokens_per_second == pytest.approx((4 + 6 + 4) / 4.0)
    assert summary.requests_per_second == pytest.approx(0.5)
    assert summary.output_tokens_mean == 5
    assert summary.ttft_ms == Quantiles(p50=400, p95=490, p99=498)
    assert summary.itl_ms is not None and summary.itl_ms.p50 == pytest.approx(100)
    assert summary.e2e_ms == Quantiles(p50=1250, p95=1475, p99=1495)


def test_time_per_token_is_from_the_first_chunk_to_the_end_over_the_other_tokens() -> None:
    # 4 tokens in 3 chunks, the end 100 ms after the last of them.
    assert record(finished=0.9).tpot_ms == pytest.approx(400 / 3)
    # The first chunk held two of them: two are left.
    assert record(finished=0.9, counts=(2, 3, 4)).tpot_ms == pytest.approx(200)
    assert record(output_tokens=1, arrivals=(0.5,)).tpot_ms is None


def test_prefill_and_decode_have_a_speed_each() -> None:
    summary = summarise([record(prompt_tokens=100), record(prompt_tokens=200)], users=1)
    assert summary.prefill_tokens_per_second == pytest.approx(300 / 1.0)
    assert summary.decode_tokens_per_second == pytest.approx(6 / 0.6)


def test_who_counted_the_tokens_is_said() -> None:
    told, untold = record(), record(output_tokens=None)
    assert summarise([told], 1).tokens_from == "usage"
    assert summarise([untold], 1).tokens_from == "chunks"
    assert summarise([told, untold], 1).tokens_from == "both"


def test_goodput_counts_what_keeps_all_bounds() -> None:
    records = [record(), record(1.0, arrivals=(0.1, 0.2)), record(2.0, error="no")]
    assert summarise(records, 1, Slo(ttft_ms=200)).goodput == pytest.approx(1 / 3.0)
    assert summarise(records, 1, Slo(ttft_ms=600, e2e_ms=1000)).goodput == pytest.approx(2 / 3.0)
    assert summarise(records, 1).goodput is None


def test_who_went_away_is_neither_complete_nor_cut_nor_failed() -> None:
    summary = summarise([record(), record(cancelled=True)], 1)
    assert (summary.requests, summary.errors, summary.cut, summary.cancelled) == (1, 0, 0, 1)


def test_older_records_load(tmp_path: Path) -> None:
    old = '{"kind":"chat","started":1.5,"arrivals":[0.5,0.75],"ended":1.0,"prompt_tokens":5,'
    file = tmp_path / "old.jsonl"
    file.write_text(old + '"output_tokens":2,"error":null,"cut":false}\n')
    (one,) = read_records(file)
    assert one.complete and one.tokens == 2 and one.tpot_ms == pytest.approx(250)
    file.write_text(old + '"surprise":1}\n')
    with pytest.raises(PruneError, match=r"line 1 is no record: surprise") as caught:
        read_records(file)
    assert "\n" not in str(caught.value)


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
