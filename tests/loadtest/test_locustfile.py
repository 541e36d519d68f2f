"""Locust really runs here, as a child process, against a server with known delays.

Delays can only grow on a busy machine: bounds are exact below and wide above.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import loadtest
from loadtest.metrics import read_records, summarise
from serve.server import free_port
from tests.loadtest.fake_openai import Behaviour, fake_openai

LOCUSTFILE = Path(loadtest.__file__).with_name("locustfile.py")
ROOT = LOCUSTFILE.parents[1]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *arguments]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **extra}


def locust(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("--headless", "--only-summary", *arguments),
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(**extra),
    )


def stats(done: subprocess.CompletedProcess[str]) -> dict[tuple[str, str], dict[str, float]]:
    return {(entry["method"], entry["name"]): entry for entry in json.loads(done.stdout)}


def test_metrics_match_the_known_delays(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    with fake_openai(Behaviour(first=0.15, gap=0.03, chunks=8, tokens_per_chunk=2)) as server:
        flags = ["-u", "2", "-r", "100", "--requests", "8", "--records", str(records), "--json"]
        flags += ["--host", server.url, "--ignore-eos", "--max-tokens", "9", "--temperature", "0.5"]
        done = locust(*flags, OPENAI_API_KEY="secret")
    assert done.returncode == 0, done.stderr
    found = stats(done)
    assert found["chat", "e2e"]["num_requests"] == 8
    assert found["chat", "itl"]["num_requests"] == 8 * 7
    assert 150 <= found["chat", "ttft"]["min_response_time"] < 400
    assert 360 <= found["chat", "e2e"]["min_response_time"] < 900
    assert found["chat", "output_tokens"]["max_response_time"] == 16
    assert 0 < found["chat", "tokens_per_second"]["max_response_time"] <= 16 / 0.36

    summary = summarise(read_records(records), users=2)
    assert (summary.requests, summary.errors, summary.cut) == (8, 0, 0)
    assert summary.itl_ms is not None and 25 <= summary.itl_ms.p50 < 80
    assert summary.output_tokens_mean == 16
    assert server.behaviour.authorization == {"Bearer secret"}
    body = server.behaviour.bodies[0]
    assert body["model"] == "fake-model" and body["path"] == "/v1/chat/completions"
    assert body["stream_options"] == {"include_usage": True}
    assert body["ignore_eos"] is True and body["max_tokens"] <= 9 and body["temperature"] == 0.5


def test_every_kind_of_failure_is_counted_and_said(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    faults = {0: "http", 1: "broken", 2: "empty", 3: "event", 4: "garbage"}
    with fake_openai(Behaviour(first=0.01, gap=0.005, faults=faults)) as server:
        flags = ["-u", "6", "-r", "100", "--requests", "7", "--host", server.url]
        flags += ["--completion-weight", "1", "--chat-weight", "0", "--records", str(records)]
        done = locust(*flags, "--json", "--slo-itl-ms", "1")
    assert done.returncode == 1
    assert "SLO missed: completion p95 itl" in done.stderr
    assert stats(done)["completion", "e2e"]["num_failures"] == 5
    assert "ignore_eos" not in server.behaviour.bodies[0]
    errors = " | ".join(sorted(r.error for r in read_records(records) if r.error))
    for part in ("HTTP 503", "broke off", "empty output", "engine died", "unreadable event"):
        assert part in errors


def test_end_of_the_running_time_cuts_answers_whose_tokens_still_count(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    with fake_openai(Behaviour(first=0.1, gap=0.05, chunks=1000)) as server:
        flags = ["-u", "3", "-r", "100", "--run-time", "3s", "--host", server.url]
        done = locust(*flags, "--slo-ttft-ms", "5", "--records", str(records))
    assert done.returncode == 1
    assert "SLO missed: no ttft was measured" in done.stderr
    summary = summarise(read_records(records), users=3)
    # On a starved machine a user may not have come to ask at all.
    assert summary.cut == len(server.behaviour.bodies) > 0
    assert (summary.errors, summary.requests) == (0, 0)
    assert summary.output_tokens_per_second > 1


def test_nobody_answers_is_a_failure_not_a_busy_loop(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    flags = ["-u", "1", "--run-time", "2s", "--host", f"http://127.0.0.1:{free_port()}"]
    done = locust(*flags, "--records", str(records))
    assert done.returncode == 1
    failed = read_records(records)
    assert 1 <= len(failed) < 10
    assert all("/v1/models" in (record.error or "") for record in failed)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workload", "absent.jsonl"], "cannot read workload absent.jsonl"),
        (["--chat-weight", "0"], "no user has a weight above 0"),
    ],
)
def test_bad_input_is_one_line_without_traceback(flags: list[str], message: str) -> None:
    done = locust("--host", "http://127.0.0.1:1", "--run-time", "1s", *flags)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.slow
def test_master_and_worker_share_a_test(tmp_path: Path) -> None:
    port, records = free_port(), tmp_path / "records.jsonl"
    with fake_openai(Behaviour(first=0.05, gap=0.01)) as server:
        worker = subprocess.Popen(
            command("--worker", "--master-port", str(port)),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            bind = ["--master", "--master-bind-port", str(port), "--expect-workers", "1"]
            bind += ["--records", str(records)]  # the master hands its flags to the workers
            done = locust(
                *bind, "-u", "2", "--run-time", "2s", "--host", server.url, "--json", "-r", "100"
            )
            worker.wait(timeout=20)
        finally:
            worker.kill()
            worker.wait()
    assert done.returncode == 0, done.stderr
    assert stats(done)["chat", "e2e"]["num_requests"] > 0
    assert read_records(tmp_path / "records.0.jsonl")


def fetched(address: str, server: subprocess.Popen[bytes]) -> str:
    """Return what a server says, as soon as it does, for a minute."""
    for _ in range(300):
        try:
            text: str = urllib.request.urlopen(address, timeout=10).read().decode()
            return text
        except OSError:
            assert server.poll() is None, "it ended"
            time.sleep(0.2)
    raise AssertionError(f"nobody answers at {address}")


def metrics_of(address: str, server: subprocess.Popen[bytes]) -> set[str]:
    found = json.loads(fetched(f"{address}/stats/requests", server))
    return {entry["name"] for entry in found["stats"]}


@pytest.mark.slow
def test_web_page_shows_the_metrics(tmp_path: Path) -> None:
    port = free_port()
    with fake_openai(Behaviour(first=0.05, gap=0.01)) as server:
        flags = ["--web-host", "127.0.0.1", "--web-port", str(port), "--autostart", "-u", "1"]
        child = subprocess.Popen(command(*flags, "--host", server.url), env=environment())
        try:
            address = f"http://127.0.0.1:{port}"
            page = fetched(address, child)
            for _ in range(300):
                names = metrics_of(address, child)
                if {"ttft", "itl", "e2e"} <= names:
                    break
                time.sleep(0.2)
        finally:
            child.terminate()
            child.wait()
    assert "<html" in page
    assert {"ttft", "itl", "e2e"} <= names
