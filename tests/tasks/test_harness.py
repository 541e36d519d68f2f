"""Scores through lm-eval are those of the plain definition and of lm-eval's own model class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from offline.engines.base import TaskResult
from offline.engines.transformers import TransformersEngine
from offline.tasks.catalog import Task, get_task
from offline.tasks.harness import local_task, run
from offline.tasks.splits import load_items
from tests.tiny import random_map
from vllm_moe_prune.errors import PruneError


def by_hand(engine: TransformersEngine, query: str, choice: str) -> float:
    """Log-likelihood of " choice" after the query, one sequence at a time."""
    context = engine.tokenizer.encode(query)
    whole = engine.tokenizer.encode(f"{query} {choice}")
    log_probs = engine.logits([whole])[0].double().log_softmax(-1)
    return sum(float(log_probs[i - 1, whole[i]]) for i in range(len(context), len(whole)))


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_items_equal_a_computation_by_hand(
    engine: TransformersEngine, own_task: Task, metric: Any
) -> None:
    task = Task("colours", metric, yaml=own_task.yaml)
    result = engine.evaluate(task, "test", 12)
    assert len(result.items) == 12
    for item, found in zip(load_items(task, "test"), result.items, strict=False):
        scores = [by_hand(engine, item.query, choice) for choice in item.choices]
        if metric == "acc_norm":
            scores = [s / len(c) for s, c in zip(scores, item.choices, strict=True)]
        wrong = max(s for i, s in enumerate(scores) if i != item.gold)
        assert found.item == item.id
        assert found.prediction == int(np.argmax(scores))
        assert found.correct == float(found.prediction == item.gold)
        assert found.margin == pytest.approx(scores[item.gold] - wrong, abs=1e-4)


def test_packed_scores_equal_those_of_lm_evals_own_model(
    engine: TransformersEngine, own_task: Task
) -> None:
    plain = HFLM(pretrained=engine.model, tokenizer=engine.tokenizer, batch_size=8, max_length=512)
    texts = local_task(own_task, "test", None)
    texts.build_all_requests()
    expected = plain.loglikelihood(texts.instances, disable_tqdm=True)
    found = engine._scorer.loglikelihood(texts.instances)
    assert [greedy for _, greedy in found] == [bool(greedy) for _, greedy in expected]
    np.testing.assert_allclose([s for s, _ in found], [s for s, _ in expected], atol=1e-4)


def test_a_map_changes_the_result_and_the_base_comes_back(
    engine: TransformersEngine, own_task: Task
) -> None:
    before = engine.evaluate(own_task, "test")
    engine.apply(random_map(engine.folder, np.random.default_rng(2), kinds=("sliced",)))
    pruned = engine.evaluate(own_task, "test")
    engine.apply(None)
    after = engine.evaluate(own_task, "test")
    assert before.items == after.items
    assert [i.margin for i in pruned.items] != [i.margin for i in before.items]
    assert before.tokens == pruned.tokens > 0


def test_usage_sums_to_tokens_times_top_k(engine: TransformersEngine, own_task: Task) -> None:
    tokens = engine.evaluate(own_task, "search", 7).tokens
    usage = engine.usage(own_task, "search", 7)
    assert usage.keys() == engine.expert_counts.keys()
    assert all(counts.shape == (8,) for counts in usage.values())
    assert [int(counts.sum()) for counts in usage.values()] == [tokens * 2] * 2


def test_usage_of_a_map_counts_kept_experts_only(
    engine: TransformersEngine, own_task: Task
) -> None:
    routing_map = random_map(engine.folder, np.random.default_rng(4), kinds=("sliced", "mapped"))
    tokens = engine.evaluate(own_task, "search", 7).tokens
    engine.apply(routing_map)
    usage = engine.usage(own_task, "search", 7)
    engine.apply(None)
    for layer in routing_map.layers:
        kept = list(layer.experts.kept or ())
        assert usage[layer.layer].sum() == usage[layer.layer][kept].sum() == tokens * layer.top_k


def test_limit_takes_the_first_items(engine: TransformersEngine, own_task: Task) -> None:
    whole, part = engine.evaluate(own_task, "test"), engine.evaluate(own_task, "test", 4)
    assert [i.item for i in part.items] == [i.item for i in whole.items[:4]]
    with pytest.raises(PruneError, match="limit is 0"):
        engine.evaluate(own_task, "test", 0)


@pytest.mark.usefixtures("real_data")
@pytest.mark.parametrize("name", ["sciq", "piqa", "basic_skills_arithmetic"])
def test_real_tasks_run(engine: TransformersEngine, name: str) -> None:
    result = run(engine._scorer, get_task(name), "selection", 20)
    assert isinstance(result, TaskResult) and len(result.items) == 20
    assert 0.0 <= result.accuracy <= 1.0
    assert torch.isfinite(torch.tensor([item.margin for item in result.items])).all()
