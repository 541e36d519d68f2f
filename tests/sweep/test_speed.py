"""Tokens per second: a map against its base in turn, whatever the machine does meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from offline.sweep.settings import SpeedSettings
from offline.sweep.speed import SpeedBench, _pieces
from tests.vllm_moe_prune.bare import layer_fields, map_of


@dataclass
class Engine:
    """An engine on a clock of its own: the base takes 2 s, a map 1 s, all of it by ``slowness``."""

    clock: float = 0.0
    slowness: float = 50.0  # of what is not warm yet
    applied: Any = None
    order: list[str] = field(default_factory=list)

    @property
    def reader(self) -> Any:
        return SimpleNamespace(decode=self.decode)

    def apply(self, routing_map: Any) -> None:
        self.applied = routing_map
        self.clock += 100  # which is no part of generating

    def decode(self, prompts: Sequence[Sequence[int]], count: int) -> int:
        own = self.applied is not None
        self.order.append("map" if own else "base")
        self.clock += self.slowness * (1 if own else 2)
        if len(self.order) % 2 == 0:  # from round to round it gets busier
            self.slowness = len(self.order) / 2
        return len(prompts) * count


def test_a_map_and_its_base_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    monkeypatch.setattr("offline.sweep.speed.time.perf_counter", lambda: engine.clock)
    settings = SpeedSettings(speed_rounds=9, speed_batch=2, speed_tokens=5)
    bench = SpeedBench(engine, "vllm", [[1, 2], [3]], settings)
    found = bench.measure(map_of(layer_fields(0)))
    total = sum(range(1, 10))  # of the slowness of nine rounds; the first one is not counted
    assert found.tokens_per_second == pytest.approx(9 * 10 / total)
    assert found.base_tokens_per_second == pytest.approx(9 * 10 / (2 * total))
    assert (found.ratio.value, found.ratio.low, found.ratio.high) == pytest.approx((2, 2, 2))
    pairs = [tuple(engine.order[at : at + 2]) for at in range(0, 20, 2)]
    assert pairs == [("map", "base"), ("base", "map")] * 5


def test_pieces_are_of_different_places_also_of_one_text() -> None:
    alike = [[*range(20)], [*range(100, 120)]]
    assert _pieces(alike, 4) == [
        [0, 1, 2, 3],
        [105, 106, 107, 108],
        [10, 11, 12, 13],
        [115, 116, 117, 118],
    ]
    assert _pieces([[7]], 3) == [[7]] * 3
