"""What is asked of a task before a model is loaded: that it has answers, and items."""

from __future__ import annotations

from collections.abc import Iterable

from offline.tasks.splits import examples, load_items
from offline.tasks.task import Split, Task
from vllm_moe_prune.errors import PruneError


def check_answered(task: Task) -> None:
    """Refuse a task whose answers cannot be right or wrong.

    :raises PruneError: if it is plain text
    """
    if task.kind == "text":
        raise PruneError(
            f"{task.name} is plain text, which has no right answers",
            hint="measure the agreement with the base on it, or give a task",
        )


def check_written(tasks: Iterable[Task]) -> None:
    """Refuse options of generation where no answer is generated.

    :raises PruneError: if they are given and every task is scored by its choices or its text
    """
    asked = list(tasks)
    if all(task.kind != "generate" and task.prompting.generation for task in asked):
        raise PruneError(
            "--think-end, --gen-kwargs and --max-gen-tokens change nothing here: no answer of "
            f"{', '.join(task.name for task in asked)} is written",
            hint="leave them out, or give a task whose answers are generated",
        )


def check_items(task: Task, split: Split) -> None:
    """Refuse a task whose items, or whose examples in the prompt, cannot be had.

    :raises PruneError: if its data cannot be read, or are too few
    """
    if task.lm_eval is not None:
        from offline.tasks.documents import documents

        documents(task.lm_eval, split)
        return
    load_items(task, split)
    examples(task)
