"""Agreement with the base against a naive computation in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from offline.engines.local.transformers import TransformersEngine
from offline.tasks.catalog import Task, get_task
from offline.tasks.harness import texts_of
from tests.tiny import random_map

WORDS = ("the", "cat", "sees", "red", "fish", "runs", "to", "house", "in", "sun", "moon", "sea")


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    """Passages of many lengths: 60 in the split for testing."""
    monkeypatch.setenv("VMPRUNE_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    lines = [
        f'{{"text": "{" ".join(rng.choice(WORDS, rng.integers(2, 60)))}"}}\n' for _ in range(120)
    ]
    (tmp_path / "words.jsonl").write_text("".join(lines))
    return get_task(f"text:{tmp_path / 'words.jsonl'}")


def naive(engine: TransformersEngine, text: str) -> list[float]:
    """Sum of min(p, q) at each position but the last, one sequence at a time."""
    applied = engine._applied
    ids = [engine.tokenizer.encode(text)]
    now = engine.logits(ids)[0, :-1].double().softmax(-1)
    engine.apply(None)
    base = engine.logits(ids)[0, :-1].double().softmax(-1)
    engine.apply(applied)
    return [float(p.minimum(q).sum()) for p, q in zip(base, now, strict=True)]


@pytest.mark.parametrize("kind", ["sliced", "w_rm", "w_em"])
def test_items_equal_the_naive_computation(
    kind: str, engine: TransformersEngine, text: Task
) -> None:
    routing_map = random_map(engine.folder, np.random.default_rng(6), kinds=(kind,), keep=3)
    engine.apply(routing_map)
    found = engine.agreement(text, "test", 12)
    expected = [naive(engine, passage) for _, passage in texts_of(text, "test", 12)]
    assert [i.correct for i in found.items] == pytest.approx(
        [float(np.mean(values)) for values in expected], abs=2e-4
    )
    assert [i.item for i in found.items] == [name for name, _ in texts_of(text, "test", 12)]
    assert 0.05 < found.accuracy < 0.98
    assert all(i.margin is None and i.prediction == "" for i in found.items)


def test_the_base_agrees_with_itself_wholly(engine: TransformersEngine, text: Task) -> None:
    assert {item.correct for item in engine.agreement(text, "test").items} == {1.0}


def test_base_runs_once_and_the_map_stays(engine: TransformersEngine, text: Task) -> None:
    routing_map = random_map(engine.folder, np.random.default_rng(6), kinds=("w_em",), keep=3)
    engine.apply(routing_map)
    before = engine.logits([[5, 6, 7]])
    first = engine.agreement(text, "selection", 25)
    assert engine._applied is routing_map
    assert engine.logits([[5, 6, 7]]).equal(before)
    again = engine.agreement(text, "selection", 25)
    assert again.items == first.items
    assert first.tokens == 2 * again.tokens > 0


def test_ranges_put_together_are_the_whole(engine: TransformersEngine, text: Task) -> None:
    engine.apply(random_map(engine.folder, np.random.default_rng(6), keep=3))
    parts = [engine.agreement(text, "test", 25), engine.agreement(text, "test", 60, 25)]
    assert parts[0].items + parts[1].items == engine.agreement(text, "test", 60).items
    inner = engine.agreement(text, "test", 33, 31).items
    assert [i.correct for i in inner] == pytest.approx(
        [i.correct for i in parts[1].items[6:8]], abs=2e-4
    )
