"""What is asked of a task before a model is loaded: that it has answers, and items."""

from __future__ import annotations

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
