"""The tables of `vmprune recover` as strings; page, terminal and benchmark only lay them out."""

from __future__ import annotations

from collections.abc import Mapping

from offline.report import words
from offline.report.tables import Table
from offline.results.recovery import Cell, Recovery, Subject

_AFTER: Mapping[str, str] = {
    "sft": "sft is zero-shot after the supervised finetune",
    "distilled": "distilled is zero-shot after the base's next tokens were learnt",
}


def recovery_table(recovery: Recovery) -> Table:
    """Every task in every mode, base beside pruned; without columns of what was not measured."""
    has_base = any(cell.subject == "base" for cell in recovery.cells)
    has_format = any(cell.in_format is not None for cell in recovery.cells)
    head = ["task", "mode"]
    head += ["base", "95% interval"] if has_base else []
    head += ["base in format"] if has_base and has_format else []
    own_head = [recovery.title, "95% interval", f"{recovery.title} in format"]
    head += own_head if has_format else own_head[:2]
    head += ["against base, points", "won back"] if has_base else []
    head += ["items"]
    rows = []
    for task, mode, base, own in recovery.rows():
        row = [words.plain(task), mode_name(mode, recovery.shots)]
        for cell in (base, own) if has_base else (own,):
            row += _numbers(cell, has_format)
        if has_base:
            gap = "" if base is None else words.points(own.accuracy - base.accuracy)
            share = None if mode == "zero-shot" else recovery.won_back(task, mode)
            row += [gap, "" if share is None else words.percent(share, 0)]
        rows.append((*row, str(own.items)))
    caption = f"Accuracy on held-out items; {_AFTER[recovery.after]}"
    return Table(caption, tuple(head), tuple(rows), frozenset({0, 1}))


def metrics_table(recovery: Recovery) -> Table | None:
    """Everything that tasks of lm-evaluation-harness report of the held-out items."""
    rows = tuple(
        (
            words.plain(cell.task),
            mode_name(cell.mode, recovery.shots),
            name_of(recovery, cell.subject),
            name,
            value,
            cell.data_split,
        )
        for cell in recovery.cells
        for name, value in cell.named.items()
    )
    head = ("task", "mode", "model", "metric", "value", "split of the data")
    caption = "All metrics of the tasks, as lm-evaluation-harness gives them"
    return Table(caption, head, rows, frozenset({0, 1, 2, 3, 5})) if rows else None


def _numbers(cell: Cell | None, has_format: bool) -> list[str]:
    if cell is None:
        return ["-"] * (3 if has_format else 2)
    numbers = [words.percent(cell.accuracy), words.interval(cell.low, cell.high)]
    if has_format:
        numbers.append("-" if cell.in_format is None else words.percent(cell.in_format))
    return numbers


def mode_name(mode: str, shots: int) -> str:
    """Name a mode; k-shot by its number of examples."""
    return f"{shots}-shot" if mode == "k-shot" else mode


def name_of(recovery: Recovery, subject: Subject) -> str:
    """Name a subject: the model is pruned where it has a routing map."""
    return recovery.title if subject == "model" else subject


def training_table(recovery: Recovery) -> Table:
    """What each finetune took."""
    rows = tuple(
        (
            name_of(recovery, done.subject),
            done.tuning.trainable,
            f"{done.tuning.parameters:,}",
            f"{done.tuning.steps:,}",
            f"{done.tuning.tokens:,}",
            f"{done.losses[0]:.3f}",
            f"{done.losses[1]:.3f}",
            words.duration(done.seconds),
            words.gib(done.peak_bytes),
        )
        for done in recovery.trained
    )
    what = ("", "trained", "parameters", "steps", "tokens with a loss")
    head = (*what, "loss, first tenth", "last tenth", "time", "peak memory")
    title = "Supervised finetune" if recovery.after == "sft" else "Distillation"
    return Table(title, head, rows, frozenset({0, 1}))


def data_table(recovery: Recovery) -> Table:
    """What was trained on and measured, named so that it can be found again."""
    data = recovery.provenance.data
    rows = tuple((d.name, d.split, str(d.count), d.sha256) for d in data)
    return Table("Data", ("data", "split", "items", "identity"), rows, frozenset({0, 1, 3}))
