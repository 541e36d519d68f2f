"""A deterministic engine whose answers follow from the map, and small maps to ask it about."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from offline.engines.ray.replica import Share
from offline.tasks.catalog import Task
from offline.tasks.results import ItemResult, TaskResult
from tests.vllm_moe_prune.bare import layer_fields, map_of
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layouts import LAYOUTS
from vllm_moe_prune.routing_map import RoutingMap

ONE, TWO = Task("one", "acc"), Task("two", "acc")
SIZES = {"one": 40, "two": 24}
EXPERTS = 8


def map_keeping(*kept: int) -> RoutingMap:
    """Return a map of one layer of 8 experts that keeps these."""
    return map_of(
        layer_fields(num_experts=EXPERTS, num_kept=len(kept), top_k=1, experts={"kept": list(kept)})
    )


def chance(kept: tuple[int, ...]) -> float:
    """Return how many of a map's items are right, about: low ids are the good experts."""
    return 0.95 - 0.11 * sum(kept) / len(kept)


class FakeEngine:
    """Answers by hashes: the same map gets the same results whoever asks, whenever.

    :param deadly: a file; while it exists, the process is killed at the next evaluation and the
        file is removed first
    """

    def __init__(self, deadly: Path | None = None) -> None:
        self.layout = LAYOUTS["mixtral"]
        self.expert_counts = {0: EXPERTS}
        self.top_k = 2
        self.asked: list[Any] = []
        self.applied: RoutingMap | None = None
        self.before: Callable[[], None] = lambda: None
        self._deadly = deadly

    def apply(self, routing_map: RoutingMap | None) -> None:
        if routing_map is not None and routing_map.layers[0].experts.kept == (7,):
            raise PruneError("this map is refused", hint="take another")
        self.applied = routing_map

    def evaluate(
        self, task: Task, split: str, limit: int | None = None, first: int = 0
    ) -> TaskResult:
        return self._answer("evaluate", task, split, limit, first)

    def agreement(
        self, task: Task, split: str, limit: int | None = None, first: int = 0
    ) -> TaskResult:
        return self._answer("agreement", task, split, limit, first)

    def usage(self, task: Task, split: str, limit: int | None = None) -> dict[int, Any]:
        return {
            0: f"use of {task.name}/{split}/{limit} {os.environ.get('OMP_NUM_THREADS')}",
            1: os.getpid(),
        }

    def _answer(
        self, how: str, task: Task, split: str, limit: int | None, first: int
    ) -> TaskResult:
        self.before()
        if self._deadly is not None and _taken(self._deadly):
            os.kill(os.getpid(), signal.SIGKILL)
        digest = self.applied.digest() if self.applied else "base"
        kept = (self.applied.layers[0].experts.kept if self.applied else (0,)) or ()
        self.asked.append((how, digest, task.name, split, first, limit, threading.get_ident()))
        stop = SIZES[task.name] if limit is None else min(limit, SIZES[task.name])
        assert first < stop
        items = []
        for number in range(first, stop):
            name = f"{task.name}-{split}-{number}"
            # half of the luck is the item's: candidates are right on the same items mostly
            luck = (_unit(name) + _unit(f"{name} {sorted(kept)}")) / 2
            right = luck < chance(kept)
            items.append(ItemResult(name, float(right), chance(kept) - luck, int(right)))
        count = len(items)
        return TaskResult(task.name, split, tuple(items), tokens=7 * count, seconds=0.25 * count)


def _taken(file: Path) -> bool:
    """Whether the file was there and this process removed it: of several only one does."""
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    return True


def make_engine(share: Share, deadly: Path | None = None) -> FakeEngine:
    return FakeEngine(deadly)


def refuse_to_load(share: Share) -> FakeEngine:
    raise PruneError("no model there", hint="give a folder")


def die_at_once(share: Share) -> FakeEngine:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _unit(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 256**7
