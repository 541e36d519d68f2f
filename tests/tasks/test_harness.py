"""Scores through lm-eval are those of the plain definition and of lm-eval's own model class."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from lm_eval.models.huggingface import HFLM

from offline.engines.local.transformers import TransformersEngine
from offline.tasks.catalog import Task, get_task
from offline.tasks.harness import local_task, run, texts_of
from offline.tasks.prompting import Prompting
from offline.tasks.results import TaskResult
from offline.tasks.splits import examples, load_items
from tests.tasks.lm_eval_model import RecordingLM
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
    assert all(use.tokens.shape == use.scores.shape == (8,) for use in usage.values())
    assert [int(use.tokens.sum()) for use in usage.values()] == [tokens * 2] * 2
    assert [use.scores.sum() for use in usage.values()] == pytest.approx([tokens] * 2, rel=1e-5)


def test_usage_leaves_examples_out(engine: TransformersEngine, own_task: Task) -> None:
    shown = get_task(f"{own_task.yaml}@2")
    plain, found = engine.usage(own_task, "search", 8), engine.usage(shown, "search")
    for layer, use in plain.items():
        np.testing.assert_array_equal(found[layer].tokens, use.tokens)


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
        counts = usage[layer.layer].tokens
        assert counts.sum() == counts[kept].sum() == tokens * layer.top_k


def test_limit_takes_the_first_items(engine: TransformersEngine, own_task: Task) -> None:
    whole, part = engine.evaluate(own_task, "test"), engine.evaluate(own_task, "test", 4)
    assert [i.item for i in part.items] == [i.item for i in whole.items[:4]]
    with pytest.raises(PruneError, match="limit is 0"):
        engine.evaluate(own_task, "test", 0)


def test_ranges_put_together_are_the_whole(engine: TransformersEngine, long_task: Task) -> None:
    whole = engine.evaluate(long_task, "test", 100)
    parts = [engine.evaluate(long_task, "test", first + 50, first) for first in (0, 50)]
    assert len(whole.items) == 100
    assert whole.items == parts[0].items + parts[1].items  # bit by bit
    assert whole.tokens == parts[0].tokens + parts[1].tokens
    (middle,) = engine.evaluate(long_task, "test", 31, 30).items
    assert (middle.item, middle.prediction) == (whole.items[30].item, whole.items[30].prediction)
    assert middle.margin == pytest.approx(whole.items[30].margin, abs=1e-4)
    rest = engine.evaluate(long_task, "test", first=97)
    assert [i.item for i in rest.items[:3]] == [i.item for i in whole.items[97:]]


def test_examples_precede_every_question(engine: TransformersEngine, own_task: Task) -> None:
    shown = get_task(f"{own_task.yaml}@2")
    start = examples(shown)
    result = engine.evaluate(shown, "search", 5)
    assert result.task == shown.name == "colours@2"
    for item, found in zip(load_items(shown, "search"), result.items, strict=False):
        scores = [by_hand(engine, start + item.query, choice) for choice in item.choices]
        wrong = max(s for i, s in enumerate(scores) if i != item.gold)
        assert found.margin == pytest.approx(scores[item.gold] - wrong, abs=1e-4)
    assert texts_of(shown, "search", 1)[0][1].startswith(start)
    assert len(engine.evaluate(shown, "search").items) == len(load_items(own_task, "search")) - 2
    with pytest.raises(PruneError, match="no items 8"):
        engine.evaluate(shown, "search", None, 8)


@pytest.mark.parametrize("limits", [(None, 500), (40, 40), (10, 25), (None, -1)])
def test_a_range_without_items_is_refused(
    limits: tuple[int | None, int], engine: TransformersEngine, own_task: Task
) -> None:
    with pytest.raises(PruneError, match=r"no items 500|are none"):
        engine.evaluate(own_task, "test", *limits)
    with pytest.raises(PruneError, match=r"no items 500|are none"):
        texts_of(own_task, "test", *limits)


def test_sharing_contexts_saves_tokens_and_changes_no_score(
    engine: TransformersEngine, own_task: Task
) -> None:
    apart = TransformersEngine(
        engine.folder, dtype="float32", tokens_per_batch=300, share_contexts=False
    )
    shared, alone = (e.evaluate(own_task, "test") for e in (engine, apart))
    pairs = local_task(own_task, "test", None).texts
    context = sum(len(engine.tokenizer.encode(query)) for query, _ in pairs)
    assert alone.tokens - shared.tokens == context * 3 // 4  # of four choices, three are spared
    assert [i.prediction for i in alone.items] == [i.prediction for i in shared.items]
    assert [i.margin for i in alone.items] == pytest.approx(
        [i.margin for i in shared.items], abs=1e-4
    )


def test_generated_answers_equal_those_of_lm_evals_own_model(
    engine: TransformersEngine, written_task: Task
) -> None:
    plain = HFLM(pretrained=engine.model, tokenizer=engine.tokenizer, batch_size=8, max_length=512)
    result = engine.evaluate(written_task, "test")
    expected = run(plain, written_task, "test")
    assert [i.prediction for i in result.items] == [i.prediction for i in expected.items]
    assert len({i.prediction for i in result.items}) > 5
    assert all(i.margin is None for i in result.items)
    assert np.isnan(result.margin)
    for item, found in zip(load_items(written_task, "test"), result.items, strict=True):
        assert found.item == item.id
        assert found.correct == float(found.prediction in item.answers)


def test_filters_of_a_users_task_are_applied(
    engine: TransformersEngine, written_task: Task
) -> None:
    plain = engine.evaluate(written_task, "test", 20)
    path = written_task.yaml
    assert path is not None
    chain = "[{function: regex, regex_pattern: '(\\w+)'}, {function: take_first}]"
    path.write_text(path.read_text() + f"filter_list: [{{name: word, filter: {chain}}}]\n")
    words = engine.evaluate(get_task(str(path)), "test", 20)
    found = [re.search(r"\w+", str(i.prediction)) for i in plain.items]
    assert [i.prediction for i in words.items] == [f[0] if f else "[invalid]" for f in found]
    assert words.items != plain.items


def test_generation_in_ranges_is_the_whole(engine: TransformersEngine, written_task: Task) -> None:
    whole = engine.evaluate(written_task, "test")
    parts = [
        engine.evaluate(written_task, "test", 25),
        engine.evaluate(written_task, "test", 30, 25),
    ]
    assert whole.items == parts[0].items + parts[1].items
    assert whole.tokens == sum(part.tokens for part in parts) > 0


def test_texts_are_the_prompts_without_answers(own_task: Task) -> None:
    items = load_items(own_task, "search")
    assert texts_of(own_task, "search", 5, 2) == [(i.id, i.query) for i in items[2:5]]


@pytest.mark.usefixtures("real_data")
@pytest.mark.parametrize("name", ["sciq", "piqa", "basic_skills_arithmetic", "squad"])
def test_real_tasks_run(engine: TransformersEngine, name: str) -> None:
    result = run(engine._scorer, get_task(name), "selection", 20)
    assert isinstance(result, TaskResult) and len(result.items) == 20
    assert 0.0 <= result.accuracy <= 1.0
    margins = [item.margin for item in result.items]
    if name == "squad":
        assert margins == [None] * 20
    else:
        assert np.isfinite(np.array(margins, dtype=float)).all()


def test_the_runs_prompting_reaches_tasks_of_this_package(written_task: Task) -> None:
    lm = RecordingLM()
    prompting = Prompting(
        apply_chat_template=True, system_instruction="Be brief.", max_gen_tokens=3, think_end="END"
    )
    asked = replace(written_task, prompting=prompting)
    result = run(lm, asked, "test", 2)
    assert len(result.items) == 2
    for item, (_, arguments) in zip(load_items(asked, "test"), lm.asked["written"], strict=False):
        prompt, options = json.loads(arguments)
        assert prompt == (f"<|system|>Be brief.<|end|><|user|>{item.query}<|end|><|assistant|>")
        assert (options["max_gen_toks"], options["think_end"]) == (3, "END")
    with pytest.raises(PruneError, match="no chat template"):
        local_task(asked, "test", 2)
    plain = replace(written_task, prompting=Prompting(system_instruction="Be brief."))
    first = load_items(plain, "test")[0].query
    assert texts_of(plain, "test", 1)[0][1] == f"Be brief.\n\n{first}"
