"""What pruning half of the experts costs on tasks, and what examples or a finetune win back.

    python -m benchmarks.recovery --bed testbed --model testbed --out recovery \\
        --tasks testbed/tasks/classify.yaml,testbed/tasks/arithmetic.yaml

The pruned model is the base with half of each layer's experts dropped one-shot by min-ean, scored
on training text; or it is given. Each task is trained on by itself, as MC-Suite does (arXiv
2504.05586, table 6), the base too. What was done is not done again: the same command continues.
Prints a Markdown table; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, get_args

import click

from benchmarks.criteria import Bed, scores_of, texts_of
from offline.build.build import build
from offline.cli.progress import progress
from offline.engines.local.transformers import TransformersEngine
from offline.plan.plan import plan
from offline.plan.recipe import PlanRecipe
from offline.recover.recipe import RecoverRecipe, training_of
from offline.recover.recover import recover
from offline.report.recovery_tables import recovery_table
from offline.results.recovery import RECOVERY_FILE, Mode, Recovery
from offline.runs.device import pick_device, pick_dtype
from vllm_moe_prune.checkpoint import Checkpoint


@click.command(context_settings={"show_default": True})
@click.option("--bed", type=click.Choice(get_args(Bed)), required=True, help="whose text to score")
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--pruned", type=click.Path(path_type=Path, exists=True), help="made if not given")
@click.option("--tasks", required=True, help="names or YAML files, comma between them")
@click.option("--criterion", default="min-ean", help="of the pruned model that is made")
@click.option("--sequences", default=16, help="of each domain, to score on")
@click.option("--length", default=512, help="tokens of a sequence, to score on and to train on")
@click.option("--shots", default=5)
@click.option("--test-items", default=500, help="of each task")
@click.option("--examples", type=int, help="training examples of a task; all unless given")
@click.option("--learning-rate", default=1e-4)
@click.option("--epochs", default=3.0)
@click.option("--trainable", default="all")
@click.option("--batch", default=8, help="sequences of a step")
@click.option("--micro-batch", type=int, help="sequences in memory at once; all if not given")
@click.option("--mixed-precision/--no-mixed-precision", default=False, help="train in bfloat16")
@click.option("--checkpointing/--no-checkpointing", default=False, help="for less memory")
@click.option("--seed", default=0)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder to work in")
def main(
    bed: Bed,
    model: Path,
    pruned: Path | None,
    tasks: str,
    criterion: str,
    sequences: int,
    out: Path,
    **settings: Any,
) -> None:
    """Do what is not done yet and print the table."""
    out.mkdir(parents=True, exist_ok=True)
    sizes = {"sequences": sequences, "length": settings["length"], "gradients": 0}
    pruned = pruned or _pruned(bed, model, criterion, sizes, out)
    found = {Path(t).stem: _recovered(model, pruned, t, out, settings) for t in tasks.split(",")}
    click.echo("\n" + _table(list(found.values())))
    shares = {name: _shares(recovery) for name, recovery in found.items()}
    known = [share["sft"] for share in shares.values() if share["sft"] is not None]
    report = {
        "name": "share_of_the_zero_shot_drop_that_sft_wins_back",
        "value": round(statistics.fmean(known), 3) if known else None,
        "unit": "ratio, mean over tasks; 1 is the base's zero-shot accuracy",
        "detail": {"won_back": shares, "cells": {name: _cells(one) for name, one in found.items()}},
    }
    click.echo("\n" + json.dumps(report))


def _pruned(bed: Bed, model: Path, criterion: str, sizes: dict[str, int], out: Path) -> Path:
    """Return the model with half of each layer's experts, made if it is not there."""
    folder = out / "pruned"
    if not folder.is_dir():
        device = pick_device("auto")
        engine = TransformersEngine(model, device=device, dtype=pick_dtype("auto", device))
        scores = scores_of(engine, texts_of(bed)[0], out, sizes)
        checkpoint = Checkpoint.open(model)
        keep = max(checkpoint.expert_counts().values()) // 2
        planned = plan(scores, PlanRecipe(criterion=criterion, keep=keep))
        build(checkpoint, planned.routing_map, folder)
    return folder


def _recovered(
    model: Path, pruned: Path, task: str, out: Path, settings: dict[str, Any]
) -> Recovery:
    folder = out / Path(task).stem
    if not (folder / RECOVERY_FILE).is_file():
        names = ("shots", "test_items", "examples", "length", "seed")
        own = {name: settings[name] for name in names}
        recipe = RecoverRecipe.of({"model": pruned, "base": model, "task": task, **own})
        kinds = ("learning_rate", "epochs", "trainable", "batch", "micro_batch")
        ways = ("mixed_precision", "checkpointing")
        training = {name: settings[name] for name in (*kinds, *ways)}
        with progress() as reporter:
            recover(recipe, training_of(training, None), folder, reporter=reporter)
    return Recovery.load(folder)


def _table(found: list[Recovery]) -> str:
    """Return the tasks' tables as one; a column that one task has all have."""
    tables = [recovery_table(recovery) for recovery in found]
    head = max((table.head for table in tables), key=len)
    rows = [
        [dict(zip(_unique(table.head), row, strict=True)).get(name, "-") for name in _unique(head)]
        for table in tables
        for row in table.rows
    ]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _unique(head: tuple[str, ...]) -> list[str]:
    """Tell columns of the same heading apart by the one before them."""
    return [
        f"{before} {name}" if head.count(name) > 1 else name
        for before, name in zip(("", *head), head, strict=False)
    ]


def _shares(recovery: Recovery) -> dict[Mode, float | None]:
    (task,) = recovery.tasks
    found: dict[Mode, float | None] = {}
    for mode in ("k-shot", "sft"):
        share = recovery.won_back(task, mode)
        found[mode] = None if share is None else round(share, 3)
    return found


def _cells(recovery: Recovery) -> dict[str, float]:
    return {f"{c.subject} {c.mode}": round(c.accuracy, 4) for c in recovery.cells}


if __name__ == "__main__":
    main()
