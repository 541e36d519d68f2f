"""`Recovery`: what pruning cost on each task and what brings it back, as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from offline.results.metrics import WithMetrics
from offline.results.result_file import ResultFile
from offline.results.text_use import TextUse
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.tuning import Tuning

RECOVERY_FILE = "recovery.json"
Subject = Literal["base", "model"]
Mode = Literal["zero-shot", "k-shot", "sft", "distilled"]
SUBJECTS: tuple[Subject, ...] = get_args(Subject)
MODES: tuple[Mode, ...] = get_args(Mode)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cell(WithMetrics, _Frozen):
    """Accuracy of one subject on one task's held-out items, 0..1, with its 95 % interval.

    ``sft`` is zero-shot after the supervised finetune, ``distilled`` after the base's next tokens
    were learnt. ``in_format`` is the share of written
    answers that have the form of a right one, whether they are right or not; None where answers
    are chosen, or where only their beginning is looked at.
    """

    subject: Subject
    mode: Mode
    task: str
    metric: str
    accuracy: float
    low: float
    high: float
    items: int = Field(ge=1)
    in_format: float | None = None
    seconds: float = 0.0


class SubjectFinetune(_Frozen):
    """What the finetune of one subject took, and its loss at the beginning and the end.

    ``losses`` are means over the first and the last tenth of the steps.
    """

    subject: Subject
    tuning: Tuning
    losses: tuple[float, float]
    seconds: float
    peak_bytes: int
    trained_bytes: int


class Recovery(ResultFile):
    """Everything that `vmprune recover` found out."""

    file_name = RECOVERY_FILE
    made_by = "vmprune recover"

    schema_version: int = 1
    model: str
    base: str | None
    out: str
    summary: str  # of the routing map; empty for a model without one
    shots: int
    lessons: int = Field(description="examples that were trained on")
    left_out: int = Field(description="examples that ask what a held-out item asks")
    cells: tuple[Cell, ...]
    trained: tuple[SubjectFinetune, ...]
    provenance: Provenance
    text: dict[str, TextUse] = Field(default_factory=dict)  # of --data, by source

    @property
    def title(self) -> str:
        """Return what to call the model beside its base."""
        return "pruned" if self.summary else "model"

    @property
    def after(self) -> Mode:
        """Return what zero-shot after the finetune is called."""
        return "distilled" if "distill" in self.provenance.settings else "sft"

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return the names of the measured tasks."""
        return tuple(dict.fromkeys(cell.task for cell in self.cells))

    def cell(self, subject: Subject, mode: Mode, task: str) -> Cell | None:
        """Return a cell if it was measured."""
        found = (c for c in self.cells if (c.subject, c.mode, c.task) == (subject, mode, task))
        return next(found, None)

    def rows(self) -> Iterator[tuple[str, Mode, Cell | None, Cell]]:
        """Yield task, mode, the base's cell (None without a base) and the model's."""
        for task in self.tasks:
            for mode in MODES:
                own = self.cell("model", mode, task)
                if own is not None:
                    yield task, mode, self.cell("base", mode, task), own

    def drop(self, task: str) -> float | None:
        """Return what pruning cost: zero-shot accuracy of the base less the model's."""
        base, own = (self.cell(subject, "zero-shot", task) for subject in SUBJECTS)
        return None if base is None or own is None else base.accuracy - own.accuracy

    def won_back(self, task: str, mode: Mode) -> float | None:
        """Return the share of the drop that a mode wins back; None where nothing was lost.

        1 is the base's zero-shot accuracy; more is possible, and less than 0.
        """
        drop, before = self.drop(task), self.cell("model", "zero-shot", task)
        after = self.cell("model", mode, task)
        if drop is None or drop <= 0 or before is None or after is None:
            return None
        return (after.accuracy - before.accuracy) / drop
