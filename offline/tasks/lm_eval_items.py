"""Documents of lm-evaluation-harness's tasks as `Item`: a question and its right answer as text.

For what reads the text of a task rather than asking it: calibration, finetuning, agreement.
"""

from __future__ import annotations

from typing import Any

from offline.tasks.documents import Documents, documents, training_documents
from offline.tasks.items import Item
from offline.tasks.loading import copied, load, templates_kept
from offline.tasks.quiet import quiet_libraries
from offline.tasks.task import Split, Task
from vllm_moe_prune.errors import PruneError


def items_of(task: Task, split: Split) -> list[Item]:
    """Return a split's questions without examples, with their answers.

    :raises PruneError: if the data cannot be had
    """
    assert task.lm_eval is not None
    return _items(task, documents(task.lm_eval, split))


def training_items_of(task: Task) -> list[Item]:
    """Return all that a model may be trained on: nothing of the selection and the test split.

    :raises PruneError: if the data cannot be had
    """
    assert task.lm_eval is not None
    return _items(task, training_documents(task.lm_eval))


def _items(task: Task, found: Documents) -> list[Item]:
    assert task.lm_eval is not None
    own = copied(load(task.lm_eval))
    with quiet_libraries(), templates_kept():
        return [_item(own, doc, name) for doc, name in zip(found.docs, found.names, strict=True)]


def _item(task: Any, doc: Any, name: str) -> Item:
    try:
        return _of(task, doc, name)
    except PruneError:
        raise
    except Exception as error:  # templates and functions of the task, over its data
        said = " ".join(str(error).split())
        raise PruneError(f"item {name} has no answer: {said[:300]}") from error


def _of(task: Any, doc: Any, name: str) -> Item:
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return Item(name, str(task.doc_to_target(doc)))
    query = task.fewshot_context(doc, num_fewshot=0, gen_prefix=task.doc_to_prefix(doc))
    target = task.doc_to_target(doc)
    if not isinstance(query, str):  # one prompt per choice, all with the same continuation
        return Item(name, query[task.doc_to_text(doc)], answers=(str(target).strip(),))
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = tuple(str(choice).strip() for choice in task.doc_to_choice(doc))
        gold = target[0] if isinstance(target, list) else target
        number = choices.index(gold.strip()) if isinstance(gold, str) else int(gold)
        return Item(name, query, choices, number)
    if isinstance(target, int) and task.config.doc_to_choice is not None:
        target = task.doc_to_choice(doc)[target]
    golds = target if isinstance(target, list | tuple) else [target]
    return Item(name, query, answers=tuple(dict.fromkeys(str(gold).strip() for gold in golds)))
