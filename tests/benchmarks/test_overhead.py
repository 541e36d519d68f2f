"""What `benchmarks.overhead` measures with: engines that step in turn, medians, a random model."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.dummy_model import Shape
from benchmarks.medians import median_of
from benchmarks.random_model import write_random_model
from benchmarks.sides import make_sides
from benchmarks.stepping import Work, step_in_turn
from benchmarks.watched_server import WatchedServer
from serve.server import ServerSpec
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError

# A server that is ready once it has computed as much as asked for.
SERVING = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"data": [{"id": "model/name"}]}')
sum(range(int(sys.argv[-1])))
port = int(sys.argv[sys.argv.index("--port") + 1])
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
FAILING = """
class LLM:
    def __init__(self, model, **_):
        raise OSError(f"cannot read {model}")
"""
TINY = Shape(128, 128, layers=2, heads=2, kv_heads=2)


class ComputingServer(WatchedServer):
    def command(self, arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-c", SERVING, *arguments]


def test_a_watched_server_says_what_its_processes_take(tmp_path: Path) -> None:
    found = []
    for work in (1_000_000, 60_000_000):
        spec = ServerSpec("model/name", extra_args=(str(work),))
        with ComputingServer(spec, tmp_path / f"{work}.log") as server:
            assert server.resident_bytes > 2**20
            found.append(server.cpu_seconds)
    light, heavy = found
    assert heavy > light + 0.2


@pytest.mark.slow
def test_engines_step_in_turn_and_a_slower_one_takes_longer(tmp_path: Path) -> None:
    sides = make_sides(tmp_path / "few", TINY)
    deep = make_sides(tmp_path / "many", replace(TINY, layers=12))["plain"]
    engines = {
        "few": sides["plain"].engine(eager=True),
        "mapped": sides["compact-mapped"].engine(eager=True),
        "many": deep.engine(eager=True),
    }
    found = step_in_turn(engines, Work(users=2, prompt_tokens=8, output_tokens=8), 5, threads=1)
    assert {name: len(seconds) for name, seconds in found.items()} == dict.fromkeys(engines, 5)
    assert median(found["many"]) > 1.5 * median(found["few"])


def test_what_vllm_says_is_shown_if_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a vLLM that says so at once; the real one's imports come before and take 12 s."""
    (tmp_path / "vllm.py").write_text(FAILING)
    path = filter(None, (str(tmp_path), os.environ.get("PYTHONPATH")))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    with pytest.raises(PruneError, match="no-such-folder"):
        step_in_turn({"one": {"model": str(tmp_path / "no-such-folder")}}, Work(1, 1, 1), 1, 1)


@pytest.mark.parametrize(
    ("n", "ranks", "confidence"),
    [  # David and Nagaraja, Order Statistics: 1 - 2 P(Bin(n, 1/2) < k)
        (1, (1, 1), 0.0),
        (2, (1, 2), 0.5),
        (5, (1, 5), 0.938),
        (6, (1, 6), 0.969),
        (10, (2, 9), 0.979),
        (20, (6, 15), 0.959),
    ],
)
def test_the_interval_is_of_order_statistics(
    n: int, ranks: tuple[int, int], confidence: float
) -> None:
    values = [float(i) for i in range(1, n + 1)]
    random.Random(0).shuffle(values)
    found = median_of(values)
    assert found["interval"] == [float(rank) for rank in ranks]
    assert found["confidence"] == confidence
    assert found["median"] == median(values)
    assert found["n"] == n


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    rng = random.Random(1)
    held = 0
    for _ in range(2000):
        low, high = median_of([rng.lognormvariate(0, 0.3) for _ in range(12)])["interval"]
        held += low <= 1.0 <= high
    assert held / 2000 == pytest.approx(median_of(range(12))["confidence"], abs=0.02)


def test_the_random_model_is_a_whole_mixtral(tmp_path: Path) -> None:
    shape = Shape(64, 96, layers=2, heads=2, kv_heads=1, experts=4, vocab=64)
    folder = write_random_model(tmp_path / "model", shape)
    model, said = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    assert Checkpoint.open(folder).expert_counts() == {0: 4, 1: 4}
    ids = AutoTokenizer.from_pretrained(folder)("w5 w9", return_tensors="pt").input_ids
    assert ids.tolist() == [[5, 9]]
    with torch.no_grad():
        assert model(ids).logits.isfinite().all()
