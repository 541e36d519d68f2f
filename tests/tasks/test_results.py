from __future__ import annotations

import json
import subprocess
import sys

import pytest

from offline.tasks.results import ItemResult, TaskResult


def result(right: int, count: int) -> TaskResult:
    items = tuple(ItemResult(str(i), float(i < right), 0.5, i) for i in range(count))
    return TaskResult("sciq", "test", items, tokens=100, seconds=1.5)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(50, 100, 0.4038, 0.5962), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)],
)
def test_wilson_interval(right: int, count: int, low: float, high: float) -> None:
    assert result(right, count).confidence_interval() == pytest.approx((low, high), abs=1e-4)


def test_json_round_trip() -> None:
    before = result(3, 5)
    after = TaskResult.from_json(json.loads(json.dumps(before.to_json())))
    assert after == before
    assert after.accuracy == pytest.approx(0.6)
    assert after.margin == 0.5


def test_names_of_tasks_and_results_import_nothing_heavy() -> None:
    code = (
        "import sys, offline.engines.base, offline.tasks.catalog, offline.tasks.splits\n"
        "print({'torch', 'transformers', 'lm_eval', 'datasets', 'vllm'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
