"""Locust really runs here, as a child process, against a server whose every token is known.

Delays can only grow on a busy machine: bounds are exact below and wide above, and no test lets the
client be judged by its own lag but the one that is about it.
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from loadtest.metrics import summarise
from loadtest.records import read_records
from serve.server import free_port
from tests.loadtest.locust_child import command, environment, locust
from tests.loadtest.scripted import Script, scripted


def stats(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, float]]:
    return {entry["name"]: entry for entry in json.loads(done.stdout)}


def test_counts_are_exact_and_times_not_too_early_everywhere_they_are_shown(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    script = Script(first=0.15, gap=0.03, only="two a chunk, continuous", key="secret", vllm=True)
    with scripted(script) as server:
        flags = ["-u", "2", "-r", "100", "--requests", "8", "--records", str(records), "--json"]
        flags += ["--host", server.url, "--ignore-eos", "--max-tokens", "16"]
        flags += ["--csv", str(tmp_path / "l"), "--html", str(tmp_path / "l.html")]
        done = locust(*flags, "--slo-ttft-ms", "1", OPENAI_API_KEY="secret")
    assert done.returncode == 1 and "SLO missed: p95 ttft" in done.stderr
    # Locust's own: one entry, one value a request, the time to the end of the answer.
    (entry,) = json.loads(done.stdout)
    assert (entry["name"], entry["num_requests"], entry["num_failures"]) == ("chat", 8, 0)
    assert entry["min_response_time"] >= 150 + 15 * 30
    # And what is about tokens.
    summary = summarise(read_records(records), users=2)
    assert (summary.requests, summary.errors, summary.cut) == (8, 0, 0)
    assert summary.output_tokens == sum(truth.tokens for truth in server.truths) == 8 * 16
    assert summary.tokens_from == "usage"
    assert summary.ttft_ms is not None and 180 <= summary.ttft_ms.p50 < 400
    assert summary.tpot_ms is not None and 25 <= summary.tpot_ms.p50 < 50
    assert {record.index for record in read_records(records)} == set(range(8))
    samples = len(records.with_suffix(".server.jsonl").read_text().splitlines())
    # A user's each, one to ask what is served and one its version, and one for each sample.
    assert server.connections <= 2 + 1 + 1 + samples
    for file in (tmp_path / "l_tokens.csv", tmp_path / "l.html"):
        assert "time per output token" in file.read_text()
    assert "secret" not in "".join(f.read_text() for f in tmp_path.iterdir())
    body = server.bodies[0]
    assert body["model"] == script.models[0] and body["path"] == "/v1/chat/completions"
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert body["ignore_eos"] is True


def test_every_kind_of_failure_is_counted_and_said(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    faults = ("503", "ends within", "empty", "error of another shape", "not json", "hangs within")
    faults += ("hangs",)
    script = Script(first=0.01, gap=0.005, first_modes=(*faults, "429 in 1 s"), only="plain")
    with scripted(script) as server:
        flags = ["-u", "1", "-r", "100", "--requests", "10", "--host", server.url]
        flags += ["--completion-weight", "1", "--chat-weight", "0", "--records", str(records)]
        done = locust(*flags, "--json", "--request-timeout", "1", "--max-tokens", "9")
    assert done.returncode == 1
    assert "8 of 10 requests failed" in done.stderr
    assert stats(done)["completion"]["num_failures"] == 8
    assert "ignore_eos" not in server.bodies[0]
    errors = [record.error or "" for record in read_records(records)]
    expected = ("HTTP 503", "broke off", "empty output", "out of memory", "unreadable event")
    for part, error in zip(expected, errors, strict=False):
        assert part in error
    assert "no end of the answer after 1 s" in errors[5]
    assert "no answer after 1 s" in errors[6]
    assert "HTTP 429" in errors[7] and errors[8:] == ["", ""]
    # What the server asked for: a second without a request.
    assert server.truths[8].received - server.truths[7].received >= 1


def test_end_of_the_running_time_cuts_answers_whose_tokens_still_count(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    script = Script(first=0.1, gap=0.05, only="two a chunk, continuous", vllm=True)
    with scripted(script) as server:
        flags = ["-u", "3", "-r", "100", "--run-time", "2s", "--host", server.url]
        flags += ["--client-lag-ms", "0.000001"]  # which no client keeps
        done = locust(*flags, "--workload", str(long_answers(tmp_path)), "--records", str(records))
    assert done.returncode == 1
    assert "the client was the bottleneck, do not believe the times: its loop was" in done.stderr
    assert "no request was answered: 0 failed, 3 were still without an end" in done.stderr
    summary = summarise(read_records(records), users=3)
    assert (summary.errors, summary.requests, summary.cut) == (0, 0, 3)
    # Tokens, not chunks: two of them in each.
    assert all(r.tokens == 2 * len(r.arrivals) > 2 for r in read_records(records))
    assert summary.output_tokens_per_second > 6


def long_answers(folder: Path) -> Path:
    file = folder / "long.jsonl"
    file.write_text('{"prompt": "a long story", "max_tokens": 100000}\n')
    return file


def test_a_server_that_is_none_ends_the_run_at_once_in_one_line() -> None:
    began = time.monotonic()
    done = locust("-u", "1", "--run-time", "60s", "--host", f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 1 and time.monotonic() - began < 40
    lines = [line for line in done.stderr.splitlines() if "INFO" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: no OpenAI-compatible server at http")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", "http://127.0.0.1:1", "--workload", "absent.jsonl"], "is missing"),
        (["--host", "http://127.0.0.1:1", "--chat-weight", "0"], "no user has a weight above 0"),
        (["--host", "http://127.0.0.1:1", "--rate", "3"], "an open loop needs an end"),
        ([], "no server to load"),
    ],
)
@pytest.mark.slow
def test_bad_input_is_one_line_without_traceback(flags: list[str], message: str) -> None:
    done = locust(*flags)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_stall_shows_in_an_open_loop_as_arithmetic_says(tmp_path: Path) -> None:
    """20 requests a second for 4 s, of which the server sends nothing for 2 s.

    Those that are due in the stall wait for its end: 0 to 2 s, evenly. They are half of all, so a
    quarter of all waits for more than 1 s, a twentieth for 1.8 and a hundredth for 1.96.
    """
    records = tmp_path / "records.jsonl"
    script = Script(first=0.02, gap=0.001, only="plain")
    with scripted(script) as server:
        flags = ["--rate", "20", "--arrivals", "constant", "--run-time", "4s", "-u", "64"]
        flags += ["--max-tokens", "4", "--host", server.url, "--records", str(records)]
        child = subprocess.Popen(
            command("--headless", "--only-summary", *flags),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not server.truths:
            assert child.poll() is None
            time.sleep(0.01)
        script.stall = (time.perf_counter() - server.began + 1.0, 2.0)
        _, said = child.communicate(timeout=60)
    assert child.returncode == 0, said
    found = read_records(records)
    assert len(found) == 80 and all(record.complete for record in found)
    waits = sorted(record.ttft_ms or 0.0 for record in found)
    assert sum(wait > 1000 for wait in waits) == pytest.approx(20, abs=4)
    assert 1600 < waits[int(0.95 * len(waits))] < 2400
    assert 1850 < waits[int(0.99 * len(waits))] < 2500
    assert sum(wait < 900 for wait in waits) >= 50
    due = [record.started for record in sorted(found, key=lambda r: r.index)]
    assert due[-1] - due[0] == pytest.approx(79 / 20, abs=0.01)


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


@pytest.mark.slow
def test_web_page_shows_true_totals_and_a_tab_of_tokens() -> None:
    port = free_port()
    first = ("503", "plain", "503", "plain", "503")
    with scripted(Script(first=0.05, gap=0.01, first_modes=first, only="plain")) as server:
        flags = ["--web-host", "127.0.0.1", "--web-port", str(port), "--autostart", "-u", "1"]
        flags += ["--requests", "10", "--max-tokens", "9"]
        child = subprocess.Popen(command(*flags, "--host", server.url), env=environment())
        try:
            address = f"http://127.0.0.1:{port}"
            page = fetched(address, child)
            for _ in range(300):
                found = json.loads(fetched(f"{address}/stats/requests", child))
                if found["state"] == "stopped" and found["stats"][-1]["num_requests"] == 10:
                    break
                time.sleep(0.2)
            table = fetched(f"{address}/tokens.csv", child)
        finally:
            child.terminate()
            child.wait()
    assert '"extended_tabs": [{"title": "Tokens"' in page or "extended_tabs" in page
    assert found["fail_ratio"] == pytest.approx(0.3)
    assert {entry["name"] for entry in found["stats"]} == {"chat", "Aggregated"}
    rows = found["extended_stats"][0]["data"]
    assert next(row["count"] for row in rows if row["metric"] == "end-to-end latency") == "7"
    assert "time per output token" in table


@pytest.mark.slow
def test_stages_conversations_and_users_who_go_away(tmp_path: Path) -> None:
    workload, records = tmp_path / "w.yaml", tmp_path / "records.jsonl"
    workload.write_text(
        "prompts: [{conversation: [one, two, three]}]\n"
        "output_tokens: {distribution: constant, median: 8}\n"
        "cancel: {share: 0.5, after: [0.01, 0.02]}\n"
        "load: {stages: [{seconds: 3, users: 1}, {seconds: 3, users: 6}]}\n"
    )
    with scripted(Script(first=0.25, gap=0.01, only="plain")) as server:
        flags = ["--workload", str(workload), "--records", str(records), "--host", server.url]
        done = locust(*flags)
    assert done.returncode == 0, done.stderr
    found = read_records(records)
    gone = [record for record in found if record.cancelled]
    assert gone and all(record.turn == 0 and not record.arrivals for record in gone)
    assert {record.turn for record in found if record.complete} == {0, 1, 2}
    said = max((body["messages"] for body in server.bodies), key=len)
    assert [message["role"] for message in said] == ["user", "assistant"] * 2 + ["user"]
    assert said[1]["content"].split() == ["wörd"] * 8
    starts = sorted(record.started for record in found)
    first = [record for record in found if record.started < starts[0] + 2]
    last = [record for record in found if record.started > starts[0] + 4]
    assert len(last) > 2 * len(first)
