"""Runs a task of lm-evaluation-harness with its own evaluator and reads what its items scored."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.evaluator import evaluate

from offline.tasks.asked import Asked, Slice, template_of, tokenizer_key
from offline.tasks.loading import code_may_run, seeded, templates_kept
from offline.tasks.quiet import quiet_libraries
from offline.tasks.results import ItemResult, TaskResult
from offline.tasks.task import Split, Task
from vllm_moe_prune.errors import PruneError

_KEPT = 64
_ASKED: dict[tuple[Task, Split, str], Asked] = {}


def asked(task: Task, split: Split, lm: Any | None) -> Asked:
    """Return a task's split with its requests, the same for all models with one tokenizer.

    :raises PruneError: if the data cannot be had
    """
    key = (task, split, tokenizer_key(lm) if task.prompting.apply_chat_template else "")
    if key not in _ASKED:
        if len(_ASKED) >= _KEPT:
            del _ASKED[next(iter(_ASKED))]
        _ASKED[key] = Asked(task, split)
    return _ASKED[key]


def requests_of(
    task: Task, split: Split, limit: int | None, first: int, lm: Any | None
) -> tuple[Asked, list[Instance], int]:
    """Return the requests of a range and the number of its documents.

    :param lm: whose chat template is applied, where the task's prompting wants one
    :raises PruneError: if the data cannot be had or the range holds no item
    """
    with quiet_libraries(), code_may_run(bool(task.lm_eval and task.lm_eval.runs_code)):
        found = asked(task, split, lm)
        count = len(found.documents.docs[first:limit])
        if not count:
            raise PruneError(
                f"task {task.name} has no items {first} to {limit or 'the end'}",
                hint=f"its split {split!r} has {len(found.documents.docs)}",
            )
        return found, found.requests(first, limit, template_of(task, lm)), count


def run_asked(
    lm: Any, task: Task, split: Split, limit: int | None = None, first: int = 0
) -> TaskResult:
    """Score documents ``first`` to ``limit`` (exclusive) as ``simple_evaluate`` would.

    :raises PruneError: if the data cannot be had, the range holds no item, or the task's fitness
        has no value in 0..1 for each item
    """
    assert task.lm_eval is not None
    found, requests, count = requests_of(task, split, limit, first, lm)
    part = Slice(found, first, requests, count)
    lm.tokens, lm.unfinished, started = 0, 0, time.perf_counter()
    with quiet_libraries(), seeded(), templates_kept(), code_may_run(task.lm_eval.runs_code):
        report = evaluate(
            lm,
            {"tasks": {task.name: part}, "groups": {}, "group_map": {}},
            bootstrap_iters=0,
            log_samples=True,
            confirm_run_unsafe_code=task.lm_eval.runs_code,
        )
    seconds = time.perf_counter() - started
    samples = report["samples"][task.name]
    names = found.documents.names[first : first + count]
    return TaskResult(
        task.name,
        split,
        _items(task, part, samples, names),
        lm.tokens,
        seconds,
        metrics=_metrics(report["results"][task.name]),
        source=found.documents.source,
        unfinished=lm.unfinished,
    )


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """Return all metrics by the names that people choose them by."""
    found: dict[str, dict[str, float]] = {}
    for key, value in values.items():
        metric, comma, chain = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float | np.number):
            found.setdefault(chain, {})[metric] = float(value)
    several = len(found) > 1
    return {
        f"{metric}/{chain}" if several else metric: value
        for chain, row in found.items()
        for metric, value in row.items()
    }


def _items(
    task: Task, part: Slice, samples: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> tuple[ItemResult, ...]:
    """Return each document's value of the fitness, from the answers of its filter."""
    metric, _, chain = task.metric.partition("/")
    chosen = chain or samples[0]["filter"]
    own = [sample for sample in samples if sample["filter"] == chosen]
    metric = _fitness(task, metric, own, part)
    return tuple(
        ItemResult(
            item=name,
            correct=_value(task, metric, sample, name) if metric else math.nan,
            margin=_margin(part, sample, metric) if task.kind == "choice" else None,
            prediction=_prediction(task, sample, part, metric),
        )
        for name, sample in zip(names, own, strict=True)
    )


def _fitness(task: Task, metric: str, samples: Sequence[Mapping[str, Any]], part: Slice) -> str:
    """Return the metric that is the fitness; what code names is known only now."""
    given = {name for sample in samples for name in sample["metrics"]}
    if metric in given:
        return metric
    rules, better = part.aggregation(), part.higher_is_better()
    fit = [name for name in samples[0]["metrics"] if rules.get(name, mean) is mean]
    fit = [name for name in fit if better.get(name, True)]
    assert task.lm_eval is not None
    if not task.lm_eval.open_metrics and metric:
        raise PruneError(f"task {task.name} gave no {metric}, but {', '.join(sorted(given))}")
    if f":{metric}" in task.name and metric not in fit:
        raise PruneError(
            f"task {task.name} gave no {metric} that can be maximised",
            hint=f"these can: {', '.join(fit) or 'none of this task'}",
        )
    return fit[0] if fit else ""


def _value(task: Task, metric: str, sample: Mapping[str, Any], name: str) -> float:
    value = sample.get(metric)
    if not isinstance(value, int | float | np.number | np.bool_):
        raise PruneError(
            f"task {task.name}: item {name} has no value of {metric}",
            hint="choose another metric: --task NAME:METRIC",
        )
    return float(value)


def _margin(part: Slice, sample: Mapping[str, Any], metric: str) -> float | None:
    """Return the score of the best right choice minus that of the best wrong one."""
    doc = sample["doc"]
    gold = part.doc_to_text(doc) if part.multiple_input else part.doc_to_target(doc)
    choices = part.doc_to_choice(doc)
    scores = _scores(sample, choices, metric)
    golds = gold if isinstance(gold, list | tuple) else [gold]
    right = {choices.index(g) if isinstance(g, str) and g in choices else g for g in golds}
    best = [score for number, score in enumerate(scores) if number in right]
    wrong = [score for number, score in enumerate(scores) if number not in right]
    return max(best) - max(wrong) if best and wrong else None


def _scores(sample: Mapping[str, Any], choices: Sequence[str], metric: str) -> list[float]:
    scores = [float(score) for score, _ in sample["filtered_resps"][: len(choices)]]
    if metric == "acc_norm":
        return [score / len(choice) for score, choice in zip(scores, choices, strict=True)]
    return scores


def _prediction(task: Task, sample: Mapping[str, Any], part: Slice, metric: str) -> int | str:
    if task.kind == "choice":
        scores = _scores(sample, part.doc_to_choice(sample["doc"]), metric)
        return max(range(len(scores)), key=scores.__getitem__)
    if task.kind == "generate":
        answer = sample["filtered_resps"][0]
        return str(answer[0] if isinstance(answer, list) and answer else answer).strip()
    return ""
