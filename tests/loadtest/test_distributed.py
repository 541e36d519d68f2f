"""Several client processes, and processes that are killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadtest.records import read_records
from serve.server import free_port
from tests.loadtest.locust_child import ROOT, command, environment, locust
from tests.loadtest.scripted import Script, scripted


@pytest.mark.slow
def test_client_processes_share_a_count_of_requests(tmp_path: Path) -> None:
    port, records = free_port(), tmp_path / "records.jsonl"
    with scripted(Script(first=0.05, gap=0.01, only="plain")) as server:
        flags = ["--processes", "2", "--master-bind-port", str(port), "--master-port", str(port)]
        flags += ["--records", str(records), "-u", "4", "-r", "100", "--requests", "31"]
        flags += ["--csv", str(tmp_path / "l")]  # as JSON workers write theirs to stdout, too
        done = locust(*flags, "--host", server.url, "--max-tokens", "8")
    assert done.returncode == 0, done.stderr
    assert "POST,chat,31,0," in (tmp_path / "l_stats.csv").read_text()
    found = read_records(records)
    assert sorted(record.index for record in found) == list(range(31))
    client = json.loads(records.with_suffix(".client.json").read_text())
    assert client["processes"] == 2
    assert len(server.truths) == 31


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_run_with_what_it_had_lost(tmp_path: Path) -> None:
    port = free_port()
    with scripted(Script(first=0.05, gap=0.1, only="plain")) as server:
        worker = subprocess.Popen(
            command("--worker", "--master-port", str(port)),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        bind = ["--master", "--master-bind-port", str(port), "--expect-workers", "1"]
        bind += ["-u", "2", "--requests", "50", "--host", server.url, "--request-timeout", "3"]
        master = subprocess.Popen(
            command("--headless", "--only-summary", *bind),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        while len(server.truths) < 3:
            time.sleep(0.05)
            assert master.poll() is None
        worker.kill()
        worker.wait()
        _, said = master.communicate(timeout=90)
    assert master.returncode == 1
    assert "were lost: a worker is gone" in said


@pytest.mark.slow
def test_a_server_that_is_killed_is_counted_and_fails_the_run(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.loadtest.scripted", "--gap", "0.05", "--only", "plain"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert server.stdout is not None
    url = f"http://127.0.0.1:{int(server.stdout.readline())}"
    flags = ["-u", "4", "-r", "100", "--run-time", "6s", "--host", url, "--records", str(records)]
    child = subprocess.Popen(
        command("--headless", "--only-summary", *flags),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not records.exists() or not records.read_text():
        time.sleep(0.05)
        assert child.poll() is None
    server.kill()
    server.wait()
    _, said = child.communicate(timeout=60)
    assert child.returncode == 1 and "requests failed" in said
    errors = [record.error for record in read_records(records) if record.error]
    assert any("refused" in error for error in errors) and len(errors) >= 4
