"""A user's own task: what lm-evaluation-harness reads from YAML, to choose or to generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from offline.tasks.items import Item
from offline.tasks.quiet import quiet_libraries
from vllm_moe_prune.errors import PruneError


def read_yaml_task(path: Path) -> tuple[list[Item], list[Item]]:
    """Render the items of an lm-eval YAML task, without examples in the prompt (0-shot).

    :returns: items for searching (the training split, else the validation split if there is a
        test split too; may be empty) and items for testing
    :raises PruneError: if the file is no task that can be scored by its choices or by its text
    """
    from lm_eval.tasks import TaskManager

    try:
        with quiet_libraries():
            tasks = TaskManager(include_defaults=False).load([str(path)])["tasks"]
    except Exception as error:  # lm-eval raises whatever YAML, jinja or datasets do
        raise PruneError(f"cannot read task {path}: {type(error).__name__}: {error}") from error
    if len(tasks) != 1:
        raise PruneError(f"{path} defines {len(tasks)} tasks, give one")
    task: Any = next(iter(tasks.values()))
    if task.OUTPUT_TYPE not in ("multiple_choice", "generate_until") or task.multiple_input:
        raise PruneError(
            f"task {path} is of type {task.OUTPUT_TYPE}",
            hint="`output_type: multiple_choice` with one prompt per item and "
            "`output_type: generate_until` can be used by the path of a file; by its name, with "
            "--include-path, any",
        )
    pool = None
    if task.has_training_docs():
        pool = task.training_docs()
    elif task.has_test_docs() and task.has_validation_docs():
        pool = task.validation_docs()
    return _items(task, pool, "train"), _items(task, task.eval_docs, "test")


def _items(task: Any, docs: Any, origin: str) -> list[Item]:
    make = _choice if task.OUTPUT_TYPE == "multiple_choice" else _written
    items = []
    for number, doc in enumerate(docs or ()):
        query = task.fewshot_context(doc, num_fewshot=0)
        try:
            items.append(make(task, doc, f"{origin}-{number}", query))
        except PruneError as error:
            raise PruneError(f"item {number}: {error.message}") from None
    return items


def _choice(task: Any, doc: Any, name: str, query: str) -> Item:
    gold = task.doc_to_target(doc)
    choices = tuple(str(choice).strip() for choice in task.doc_to_choice(doc))
    if isinstance(gold, str):
        gold = choices.index(gold) if gold in choices else -1
    if not isinstance(gold, int) or not 0 <= gold < len(choices):
        raise PruneError(f"the target {gold!r} is none of the choices")
    return Item(name, query, choices, gold)


def _written(task: Any, doc: Any, name: str, query: str) -> Item:
    target = task.doc_to_target(doc)
    if isinstance(target, int) and task.config.doc_to_choice is not None:
        target = task.doc_to_choice(doc)[target]
    golds = target if isinstance(target, list | tuple) else [target]
    answers = tuple(dict.fromkeys(str(gold).strip() for gold in golds))
    if not any(answers):
        raise PruneError(f"the target {target!r} holds no answer")
    return Item(name, query, answers=answers)
