"""Runs a task through lm-evaluation-harness and turns its samples into a `TaskResult`."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import Any, Protocol, cast

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate

from offline.demo.packages import cache_root
from offline.engines.base import ItemResult, TaskResult
from offline.tasks.catalog import Split, Task
from offline.tasks.quiet import quiet_libraries
from offline.tasks.splits import split_file
from vllm_moe_prune.errors import PruneError


class CountingLM(Protocol):
    """An lm-eval model that also counts the tokens it was given to compute."""

    tokens: int


class LocalTask(ConfigurableTask):  # type: ignore[misc]  # lm-eval is untyped
    """An lm-eval task whose requests are built once: a search asks the same items many times."""

    def __init__(self, task: Task, split: Split, limit: int | None) -> None:
        super().__init__(config=_config(task, split))
        docs = self.eval_docs if limit is None else list(self.eval_docs)[:limit]
        self._fixed = [
            request
            for number, doc in enumerate(docs)
            for request in self.construct_requests(
                doc=doc,
                ctx=self.fewshot_context(doc, num_fewshot=0),
                metadata=(task.name, number, 1),
            )
        ]

    def build_all_requests(self, **_: Any) -> None:
        """Hand out the same requests again, without the answers of the last time."""
        for request in self._fixed:
            request.resps, request.filtered_resps = [], {}
        self._instances = self._fixed

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Return the (context, continuation) pairs of all requests."""
        return [cast(Instance, request).args for request in self._fixed]


def run(lm: CountingLM, task: Task, split: Split, limit: int | None = None) -> TaskResult:
    """Score the first ``limit`` items of a split (all if None) with an lm-eval model.

    :raises PruneError: if the data cannot be had or ``limit`` is below one
    """
    local = local_task(task, split, limit)
    lm.tokens, started = 0, time.perf_counter()
    with quiet_libraries():
        found = evaluate(
            lm,
            {"tasks": {task.name: local}, "groups": {}, "group_map": {}},
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
        )
    seconds = time.perf_counter() - started
    items = tuple(_item(sample, task) for sample in found["samples"][task.name])
    return TaskResult(task.name, split, items, lm.tokens, seconds)


@functools.lru_cache(maxsize=16)
def local_task(task: Task, split: Split, limit: int | None) -> LocalTask:
    """Return a task over the JSONL file of a split, with its requests built.

    :raises PruneError: if the data cannot be had or ``limit`` is below one
    """
    if limit is not None and limit < 1:
        raise PruneError(f"limit is {limit}, at least one item is needed")
    with quiet_libraries():
        return LocalTask(task, split, limit)


def _config(task: Task, split: Split) -> dict[str, Any]:
    """Return the task in the terms of lm-eval: what one would write as YAML."""
    metrics = [
        {"metric": name, "aggregation": "mean", "higher_is_better": True}
        for name in ("acc", "acc_norm")
    ]
    return {
        "task": task.name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {split: str(split_file(task, split))},
            "cache_dir": str(cache_root() / "datasets"),
        },
        "test_split": split,
        "output_type": "multiple_choice",
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "num_fewshot": 0,
        "metric_list": metrics,
        "metadata": {"version": 1},
    }


def _item(sample: Mapping[str, Any], task: Task) -> ItemResult:
    doc = sample["doc"]
    scores = [float(log_likelihood) for log_likelihood, _ in sample["filtered_resps"]]
    if task.metric == "acc_norm":
        scores = [s / len(choice) for s, choice in zip(scores, doc["choices"], strict=True)]
    best = max(range(len(scores)), key=scores.__getitem__)
    wrong = [score for number, score in enumerate(scores) if number != doc["gold"]]
    return ItemResult(
        item=doc["id"],
        correct=float(sample[task.metric]),
        margin=scores[doc["gold"]] - max(wrong) if wrong else None,
        prediction=best,
    )
