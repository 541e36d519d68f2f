"""Both engines on a real task with the demo model, item by item."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from offline.demo.model import make_demo_model
from offline.engines.live.engine import VllmEngine
from offline.engines.local.transformers import TransformersEngine
from offline.tasks.catalog import get_task
from tests import caches
from tests.sample_maps import uniform_map
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

ITEMS = 20
TIE = 0.02  # nats: what float32 can leave undecided in a continuation of some twenty tokens


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        caches.provide("olmo", "smollm2")
        return make_demo_model(tmp_path_factory.mktemp("demo") / "model")
    except PruneError as error:
        pytest.skip(f"demo model or data: {error}")


def test_the_same_predictions_but_for_ties(demo: Path) -> None:
    counts = Checkpoint.open(demo).expert_counts()
    rng = np.random.default_rng(0)
    kept = [sorted(int(i) for i in rng.choice(n, n // 2, replace=False)) for n in counts.values()]
    task = get_task("arc_easy")
    maps = (None, uniform_map(demo, kept))
    results = {}
    reference = TransformersEngine(demo, dtype="float32")
    for number, routing_map in enumerate(maps):
        reference.apply(routing_map)
        results[number] = reference.evaluate(task, "search", ITEMS)
    del reference
    with VllmEngine(demo, dtype="float32", max_model_len=1024) as live:
        for number, routing_map in enumerate(maps):
            live.apply(routing_map)
            found = live.evaluate(task, "search", ITEMS)
            for mine, theirs in zip(found.items, results[number].items, strict=True):
                assert mine.item == theirs.item
                assert mine.margin is not None and theirs.margin is not None
                assert mine.margin == pytest.approx(theirs.margin, abs=TIE)
                if mine.correct != theirs.correct:
                    assert abs(mine.margin) < TIE
                elif mine.correct:
                    assert mine.prediction == theirs.prediction
            agreement = live.agreement(task, "search", 2)
            assert (agreement.accuracy > 0.9999) == (routing_map is None)
    assert results[0].items != results[1].items
