"""Routing maps of every kind, and what it takes for two engines to agree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offline.engines.live.engine import VllmEngine
from offline.tasks.catalog import Task
from offline.tasks.harness import local_task
from offline.tasks.results import TaskResult
from tests.sample_maps import mixed_map, uniform_map
from tests.tiny import random_map
from vllm_moe_prune.routing_map import RoutingMap

FLOAT32_LIMIT = 2e-3


def the_map(kind: str, base: Path) -> RoutingMap | None:
    rng = np.random.default_rng(5)
    if kind == "base":
        return None
    if kind == "uniform":
        return uniform_map(base, [(0, 2, 5, 7), (1, 2, 3, 4), (7, 0, 6, 1), (2, 4, 5, 6)])
    if kind == "top-1":
        return uniform_map(base, [range(8)] * 4, top_k=1)
    if kind == "mixed":
        return mixed_map(base)
    return random_map(base, rng, kinds=(kind,))  # type: ignore[no-any-return]


KINDS = ("base", "uniform", "top-1", "mixed", "sliced", "mapped", "w_rm", "w_em")


def assert_same(found: TaskResult, expected: TaskResult) -> None:
    """Predictions are equal, margins within float32's noise."""
    assert [i.item for i in found.items] == [i.item for i in expected.items]
    assert [i.prediction for i in found.items] == [i.prediction for i in expected.items]
    assert [i.correct for i in found.items] == [i.correct for i in expected.items]
    margins = [[i.margin or 0.0 for i in result.items] for result in (found, expected)]
    np.testing.assert_allclose(*margins, atol=FLOAT32_LIMIT)


def log_likelihoods(engine: Any, task: Task) -> list[tuple[float, bool]]:
    lm = engine._lm if isinstance(engine, VllmEngine) else engine._scorer
    requests = local_task(task, "test", None)
    requests.build_all_requests()
    return lm.loglikelihood(requests._instances)  # type: ignore[no-any-return]


def assert_same_likelihoods(
    found: Sequence[tuple[float, bool]], expected: Sequence[tuple[float, bool]]
) -> None:
    np.testing.assert_allclose(
        [value for value, _ in found], [value for value, _ in expected], atol=FLOAT32_LIMIT
    )
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
