"""A worker that is killed: one line, an exit status, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.compress.test_compress import arguments_of
from tests.compress.test_eep import SETTINGS
from tests.sample_files import write_task
from tests.sample_runs import log_of
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.routing_map import RoutingMap

pytestmark = pytest.mark.slow
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


class Command:
    """`vmprune` in a process of its own."""

    def __init__(self, words: list[str]) -> None:
        code = "from offline.cli.main import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )

    def kill(self, name: str, when: Callable[[], bool]) -> None:
        """Kill the first of its processes with a word in its name, once something is so."""
        deadline = time.monotonic() + 900
        while not (when() and (found := list(self._named(name)))):
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        found[0].send_signal(signal.SIGKILL)

    def _named(self, name: str) -> Iterator[psutil.Process]:
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if name in " ".join((child.name(), *child.cmdline())):
                    yield child
            except psutil.Error:
                continue

    def end(self) -> tuple[int, list[str]]:
        """Wait for the end; return the exit status and the lines that say error."""
        _, said = self.process.communicate(timeout=900)
        assert "Traceback" not in said, said
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        return self.process.returncode, lines


@pytest.fixture
def search(tmp_path: Path) -> dict[str, Any]:
    model = make_tiny_mixtral(tmp_path / "tiny")
    more = {"keep": 4, "evaluations": 30, "compare": "frequency"}
    return SETTINGS | {"model": model, "task": write_task(tmp_path)} | more


def has_lines(out: Path, count: int) -> Callable[[], bool]:
    log = out.with_name(f"{out.name}.run") / "evaluations.jsonl"
    return lambda: log.exists() and log.read_bytes().count(b"\n") >= count


@pytest.mark.vllm
def test_vllms_process(search: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    del search["device"]
    words = arguments_of(search | {"engine": "vllm", "out": out})
    command = Command(words)
    command.kill("EngineCore", has_lines(out, 2))
    status, lines = command.end()
    assert status == 1
    assert lines == [
        "error: vLLM's engine process ended, as the system ends one when memory is short"
    ]
    before = log_of(out)
    assert not out.exists() and before
    assert Command(words).end() == (0, [])
    assert log_of(out)[: len(before)] == before


def test_a_replica(search: dict[str, Any], tmp_path: Path) -> None:
    """Ray starts another one, which goes on at the same work: the map is the one of one engine."""
    two, one = tmp_path / "two", tmp_path / "one"
    command = Command(arguments_of(search | {"out": two, "replicas": 2}))
    command.kill("_Host", has_lines(two, 4))
    assert command.end() == (0, [])
    assert Command(arguments_of(search | {"out": one})).end() == (0, [])
    assert RoutingMap.load(one).digest() == RoutingMap.load(two).digest()


def test_a_process_that_trains(tmp_path: Path) -> None:
    model, out = make_tiny_mixtral(tmp_path / "tiny"), tmp_path / "out"
    words = ["recover", "--model", model, "--task", write_task(tmp_path), "--steps", "40"]
    words += ["--processes", "2", "--batch", "4", "--micro-batch", "2", "--device", "cpu"]
    words += ["--dtype", "float32", "--learning-rate", "0.003", "--test-items", "10", "--out", out]
    command = Command([str(word) for word in words])
    command.kill("offline.finetune.worker", lambda: _trains(out))
    status, lines = command.end()
    assert status == 1
    assert lines == [
        "error: training failed: a process was killed, as the system does when memory is short"
    ]
    assert not out.exists()
    assert Command([str(word) for word in words]).end() == (0, [])
    assert (out / "model.safetensors").exists()


def _trains(out: Path) -> bool:
    return bool(list(out.with_name("out.run").glob("*")))
