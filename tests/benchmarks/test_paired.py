"""What `benchmarks.overhead` says about its rounds, and the model that it serves."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import paired
from benchmarks.dummy_model import Shape
from benchmarks.paired import Load, WatchedServer, alternate, check_memory, median_of
from benchmarks.random_model import write_random_model
from loadtest.results import Settings
from loadtest.workload import Lengths, save_workload
from serve.server import ServerSpec
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError

# The fake endpoint in a process of its own; every answer takes as much computing as asked for.
SERVING = """
import sys, threading
from http.server import ThreadingHTTPServer
from tests.loadtest import fake_openai as fake
class Handler(fake._Handler):
    def do_GET(self):
        self._json(200, {}) if self.path == "/health" else super().do_GET()
    def do_POST(self):
        sum(range(int(sys.argv[-1])))
        super().do_POST()
server = fake.FakeServer.__new__(fake.FakeServer)
port = int(sys.argv[sys.argv.index("--port") + 1])
ThreadingHTTPServer.__init__(server, ("127.0.0.1", port), Handler)
server.behaviour, server.lock = fake.Behaviour(first=0, gap=0, faults=FAULTS), threading.Lock()
server.serve_forever()
"""


class FakeServer(WatchedServer):
    faults: dict[int, str] = {}  # noqa: RUF012

    def command(self, arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-c", SERVING.replace("FAULTS", repr(self.faults)), *arguments]


class BreakingServer(FakeServer):
    faults = {-1: "broken"}  # noqa: RUF012


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.setattr(paired, "_QUIET_SECONDS", 0.0)  # this server does not poll
    length = Lengths(distribution="constant", median=8, min=1, max=8)
    save_workload(tmp_path / "work.jsonl", ["one", "two"], length)
    return Load(Settings(endpoint="completion", workload=str(tmp_path / "work.jsonl")), 2, 4)


def spec(work: int) -> ServerSpec:
    return ServerSpec("model/name", extra_args=(str(work),))


def test_a_slower_server_has_the_lower_ratio_in_every_round(tmp_path: Path, load: Load) -> None:
    said: list[str] = []
    with (
        FakeServer(spec(1_000_000), tmp_path / "1.log") as light,
        FakeServer(spec(6_000_000), tmp_path / "2.log") as heavy,
    ):
        assert light.resident_bytes > 2**20
        found = alternate(light, heavy, load, 2, said.append)
    assert len(found.tokens_per_second) == len(found.cpu_per_token) == len(said) == 2
    assert max(found.tokens_per_second) < 0.8
    assert min(found.cpu_per_token) > 1.25


def test_an_answer_that_breaks_off_ends_the_measurement(tmp_path: Path, load: Load) -> None:
    with (
        BreakingServer(spec(1), tmp_path / "1.log") as server,
        pytest.raises(PruneError, match=r"model/name: the stream broke off.*1\.log"),
    ):
        alternate(server, server, load, 1, print)


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
    assert found["per_round"] == values


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    rng = random.Random(1)
    held = 0
    for _ in range(2000):
        low, high = median_of([rng.lognormvariate(0, 0.3) for _ in range(12)])["interval"]
        held += low <= 1.0 <= high
    assert held / 2000 == pytest.approx(median_of(range(12))["confidence"], abs=0.02)


def test_a_second_server_is_refused_where_it_does_not_fit() -> None:
    check_memory(2**20)
    with pytest.raises(PruneError, match=r"a second server needs 1048576\.0 GiB"):
        check_memory(2**50)


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
