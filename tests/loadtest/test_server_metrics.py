"""What a server says of itself beside a test: read exactly, and nothing where it says nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.endpoint import Endpoint
from loadtest.records import read_records
from loadtest.report import write_records
from loadtest.server_metrics import SUFFIX, Sample, ServerUse, ServerWatch, read_samples
from tests.loadtest.locust_child import locust
from tests.loadtest.scripted import Script, scripted

TEXT = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.25
vllm:num_preemptions_total{engine="0",model_name="m"} 7.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.7e+09
vllm:e2e_request_latency_seconds_bucket{le="0.3"} 5.0
vllm:request_queue_time_seconds_sum{engine="0"} 1.5
vllm:request_queue_time_seconds_sum{engine="1"} 0.5
vllm:request_queue_time_seconds_bucket{le="0.3"} 5.0
vllm:cache_config_info{engine="0",kv_cache_size_tokens="4096",num_gpu_blocks="256"} 1.0
vllm:cache_config_info{engine="1",kv_cache_size_tokens="None",num_gpu_blocks="None"} 1.0
"""


def test_engines_behind_one_address_are_added_up() -> None:
    found = Sample.read(TEXT, at=4.0)
    assert found == Sample(
        at=4.0, running=5, kv_used=0.375, kv_tokens=4096, preemptions=7, queue_seconds=2
    )


@given(st.text())
def test_any_text_is_a_sample_none_or_an_error_of_values(text: str) -> None:
    try:
        found = Sample.read(text, at=0.0)
    except ValueError:
        return
    assert found is None


def test_what_is_counted_is_counted_between_the_ends() -> None:
    first = Sample(at=0, running=1, preemptions=5, prefix_queries=100, prefix_hits=50)
    last = Sample(at=9, running=4, preemptions=6, prefix_queries=140, prefix_hits=60)
    first = first.model_copy(update={"queue_seconds": 1.0, "decode_seconds": 4.0, "decoded": 10})
    last = last.model_copy(update={"queue_seconds": 1.5, "decode_seconds": 6.0, "decoded": 20})
    use = ServerUse.of([first, Sample(at=4, running=6), last])
    assert use is not None
    assert (use.samples, use.running, use.preemptions) == (3, 6, 1)
    assert use.prefix_hit_share == pytest.approx(0.25) and use.waiting is None
    assert (use.queue_ms, use.prefill_ms, use.decode_ms) == (50, None, 200)
    restarted = ServerUse.of([last, first])
    assert restarted is not None and restarted.preemptions is None
    assert ServerUse.of([]) is None


def test_a_server_that_says_nothing_is_asked_once(tmp_path: Path) -> None:
    with scripted(Script(vllm=False)) as server:
        watch = ServerWatch(Endpoint.of(server.url), tmp_path / "watched")
        assert not watch.look()
        watch.stop()
    assert not (tmp_path / "watched").exists()


def test_a_locust_run_has_them_beside_its_records_and_on_its_page(tmp_path: Path) -> None:
    records = tmp_path / "r.parquet"
    with scripted(Script(only="plain", vllm=True)) as server:
        flags = ("--users", "1", "--requests", "8", "--records", str(records))
        done = locust("--host", server.url, *flags)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / f"r{SUFFIX}").read_text().splitlines()
    assert json.loads(lines[-1])["preemptions"] == 8 and json.loads(lines[-1])["kv_used"] == 0.25
    use = ServerUse.of(read_samples(records))
    assert use is not None and use.running == 1 and use.waiting == 0
    assert len(read_records(records)) == 8 and not (tmp_path / "r.parquet.jsonl").exists()
    page = write_records([records], tmp_path / "page.html").read_text()
    assert "The server: r" in page and "<td>1 / 0</td><td>25.0 %</td>" in page
