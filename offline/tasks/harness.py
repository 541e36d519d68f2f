"""Runs a task through lm-evaluation-harness and turns its samples into a `TaskResult`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate

from offline.data.packages import cache_root
from offline.tasks.answers import is_right
from offline.tasks.asked import Template, template_of, tokenizer_key
from offline.tasks.evaluation import requests_of, run_asked
from offline.tasks.needs import check_answered
from offline.tasks.quiet import quiet_libraries
from offline.tasks.results import ItemResult, TaskResult
from offline.tasks.splits import examples, load_items, split_file
from offline.tasks.task import Metric, Split, Task
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import parse_json

_GENERATED = "exact_match"  # the name that lm-eval knows; what it says is up to answers.py


_KEPT = 64
_LOCAL: dict[tuple[Task, Split, int | None, int, str], LocalTask] = {}


class CountingLM(Protocol):
    """An lm-eval model that also counts: see `Encoder`."""

    tokens: int
    unfinished: int


class LocalTask(ConfigurableTask):  # type: ignore[misc]  # lm-eval is untyped
    """Some items of a split as an lm-eval task whose requests are built once.

    A search asks the same items many times. Documents have the numbers that they have in the
    split, whatever the range: an engine may batch by them.
    """

    def __init__(
        self, task: Task, split: Split, limit: int | None, first: int, template: Template | None
    ) -> None:
        super().__init__(config=_config(task, split))
        self._task, self._first = task, first
        docs = list(self.eval_docs)[: len(load_items(task, split))]  # without the examples
        self._docs, self._examples = docs[first:limit], examples(task)
        if not self._docs:
            raise PruneError(
                f"task {task.name} has no items {first} to {limit or 'the end'}",
                hint=f"its split {split!r} has {len(docs)}",
            )
        self._fixed = [
            request
            for number, doc in self.doc_iterator()
            for request in self._requests(number, doc, template)
        ]

    def _requests(self, number: int, doc: Any, template: Template | None) -> list[Instance]:
        made = self.construct_requests(
            doc=doc,
            ctx=_worded(self._task, self._examples + doc["query"], template),
            metadata=(self._task.name, number, 1),
            apply_chat_template=bool(self._task.prompting.apply_chat_template),
        )
        return made if isinstance(made, list) else [made]

    def doc_iterator(self, **_: Any) -> Iterator[tuple[int, Any]]:
        """Yield (number in the split, document)."""
        return enumerate(self._docs, start=self._first)

    def build_all_requests(self, **_: Any) -> None:
        """Hand out the same requests again, without the answers of the last time."""
        for request in self._fixed:
            request.resps, request.filtered_resps = [], {}
        self._instances = self._fixed

    def process_results(self, doc: Any, results: Any) -> dict[str, Any]:
        """Score one item; generated answers by our own rule (see answers.py)."""
        if self._task.kind == "generate":
            right = is_right(cast(Metric, self._task.metric), _text(results), doc["answers"])
            return {_GENERATED: float(right)}
        scores: dict[str, Any] = super().process_results(doc, results)
        return scores

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Return the (context, continuation) pairs of all requests of a ``choice`` task."""
        return [cast(Instance, request).args for request in self._fixed]


@dataclass(frozen=True, slots=True)
class AskedTexts:
    """The requests of a range of one of lm-eval's own tasks."""

    instances: Sequence[Instance]

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Return the (context, continuation) pairs of all requests of a ``choice`` task."""
        return [request.args[:2] for request in self.instances]


def run(
    lm: CountingLM, task: Task, split: Split, limit: int | None = None, first: int = 0
) -> TaskResult:
    """Score items ``first`` to ``limit`` (exclusive; None: to the end) with an lm-eval model.

    :raises PruneError: if the data cannot be had, the range holds no item or the task is a text
    """
    if task.lm_eval is not None:
        _check_range(limit, first)
        return run_asked(lm, task, split, limit, first)
    local = local_task(task, split, limit, first, lm)
    lm.tokens, lm.unfinished, started = 0, 0, time.perf_counter()
    with quiet_libraries():
        found = evaluate(
            lm,
            {"tasks": {task.name: local}, "groups": {}, "group_map": {}},
            bootstrap_iters=0,
            log_samples=True,
        )
    seconds = time.perf_counter() - started
    items = tuple(_item(sample, task) for sample in found["samples"][task.name])
    return TaskResult(task.name, split, items, lm.tokens, seconds, unfinished=lm.unfinished)


def local_task(
    task: Task, split: Split, limit: int | None, first: int = 0, lm: Any | None = None
) -> LocalTask | AskedTexts:
    """Return a task over a range of a split, with its requests built.

    :param lm: whose chat template is applied, where the task's prompting wants one
    :raises PruneError: as `run`
    """
    check_answered(task)
    _check_range(limit, first)
    if task.lm_eval is not None:
        return AskedTexts(requests_of(task, split, limit, first, lm)[1])
    template = template_of(task, lm)
    key = (task, split, limit, first, tokenizer_key(lm) if template else "")
    if key not in _LOCAL:
        if len(_LOCAL) >= _KEPT:
            del _LOCAL[next(iter(_LOCAL))]
        with quiet_libraries():
            _LOCAL[key] = LocalTask(task, split, limit, first, template)
    return _LOCAL[key]


def texts_of(
    task: Task, split: Split, limit: int | None = None, first: int = 0, lm: Any | None = None
) -> list[tuple[str, str]]:
    """Return (item id, text) of a range: the prompt without any answer, or the passage.

    :param lm: as of `local_task`
    :raises PruneError: if the data cannot be had or the range holds no item
    """
    _check_range(limit, first)
    if task.lm_eval is not None:
        found, requests, _ = requests_of(task, split, limit, first, lm)
        prompts = {request.doc_id: str(request.args[0]) for request in reversed(requests)}
        return [(found.documents.names[number], prompts[number]) for number in sorted(prompts)]
    items = load_items(task, split)
    if not items[first:limit]:
        raise PruneError(
            f"task {task.name} has no items {first} to {limit or 'the end'}",
            hint=f"its split {split!r} has {len(items)}",
        )
    start, template = examples(task), template_of(task, lm)
    return [(item.id, _worded(task, start + item.query, template)) for item in items[first:limit]]


def _worded(task: Task, prompt: str, template: Template | None) -> str:
    """Return a prompt with the run's system instruction, as a conversation where one is wanted."""
    system = task.prompting.system_instruction
    if task.kind == "text" or template is None:
        return f"{system}\n\n{prompt}" if system and task.kind != "text" else prompt
    turns = [{"role": "system", "content": system}] if system else []
    return template([*turns, {"role": "user", "content": prompt}], add_generation_prompt=True)


def without_examples(task: Task, split: Split, limit: int | None) -> tuple[Task, int | None]:
    """Return what asks the same items without examples: the task, and the limit.

    Where a router is watched, examples that every prompt repeats would outweigh the items.
    """
    if not task.shots:
        return task, limit
    if task.lm_eval is not None:  # its examples take no items away
        return task.bare, limit
    count = len(load_items(task, split))
    return task.bare, count if limit is None else min(limit, count)


def _check_range(limit: int | None, first: int) -> None:
    if limit is not None and limit < 1:
        raise PruneError(f"limit is {limit}, at least one item is needed")
    if first < 0 or (limit is not None and first >= limit):
        raise PruneError(f"items {first} to {limit} are none, at least one item is needed")


def _config(task: Task, split: Split) -> dict[str, Any]:
    """Return the task in the terms of lm-eval: what one would write as YAML."""
    config = {
        "task": task.name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {split: str(split_file(task, split))},
            "cache_dir": str(cache_root() / "datasets"),
        },
        "test_split": split,
        "doc_to_text": "query",
        "num_fewshot": 0,
        "metadata": {"version": 1},
    }
    if task.generation is None:
        return config | {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [_metric("acc"), _metric("acc_norm")],
        }
    return config | {
        "output_type": "generate_until",
        "doc_to_target": "answers",
        "generation_kwargs": {
            "until": list(task.generation.until),
            "max_gen_toks": task.generation.max_tokens,
            "do_sample": False,
            **task.prompting.generation,
        },
        "filter_list": parse_json(task.generation.filters or "null", task.name),
        "metric_list": [_metric(_GENERATED)],
    }


def _metric(name: str) -> dict[str, Any]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": True}


def _item(sample: Mapping[str, Any], task: Task) -> ItemResult:
    doc = sample["doc"]
    if task.kind == "generate":
        text = _text(sample["filtered_resps"])
        return ItemResult(doc["id"], float(sample[_GENERATED]), margin=None, prediction=text)
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


def _text(results: Any) -> str:
    """Return the one generated text of an item, trimmed; filters may have left a list of one."""
    (text,) = results
    return str(text[0] if isinstance(text, list) else text).strip()
