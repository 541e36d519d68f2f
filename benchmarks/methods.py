"""Held-out accuracy of all methods on one model: the tables of docs/results.md.

    python -m benchmarks.methods --model base --tasks sciq,arc_easy --keep 4,2 --out methods

For every task and number of kept experts one `vmprune compress` with EEP, both phases, and all
baselines, and one with a single active expert. Runs that were done are not repeated, and one that
was killed continues. Prints the tables as Markdown; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import click

from offline.cli.progress import progress
from offline.compress.compress import compress
from offline.compress.recipe.reading import recipe_of
from offline.engines.local.transformers import TransformersEngine
from offline.results.compression import Quality, RunResult
from offline.runs.device import pick_device, pick_dtype

_NAMES = {
    "base": "base",
    "random": "random",
    "frequency": "frequency",
    "soft_activation": "soft activation",
    "naee": "NAEE",
    "eep_prune": "EEP prune",
    "eep": "EEP prune + merge",
    "top1": "EEP, top-1",
}


@click.command(context_settings={"show_default": True})
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--tasks", required=True, help="names or YAML files, comma between them")
@click.option("--keep", default="4,2")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder for the runs")
@click.option("--evaluations", default=160)
@click.option("--search-items", default=200)
@click.option("--selection-items", default=200)
@click.option("--test-items", default=500)
@click.option("--random-maps", default=10)
@click.option("--groups", default="4")
@click.option("--seed", default=0)
def main(model: Path, tasks: str, keep: str, out: Path, **settings: Any) -> None:
    """Run everything that is not there yet and print the tables."""
    out.mkdir(parents=True, exist_ok=True)
    device = pick_device("auto")
    engine = TransformersEngine(model, device=device, dtype=pick_dtype("auto", device))
    ratios: dict[str, float] = {}
    for task, kept in itertools.product(tasks.split(","), map(int, keep.split(","))):
        common = {"model": model, "task": task, "keep": kept, **settings}
        name = f"{Path(task).stem}-{kept}"
        baselines = "random,frequency,soft_activation,naee"
        full = _run(engine, out / name, {**common, "compare": baselines})
        single = _run(engine, out / f"{name}-top1", {**common, "top_k": "1", "compare": "none"})
        click.echo("\n" + _table(full, single, kept))
        found, random_ = full.quality_of("eep"), full.quality_of("random")
        if found and random_:
            ratios[name] = found.accuracy / random_.accuracy
    report = {
        "name": "eep_over_random_held_out_accuracy",
        "value": round(statistics.fmean(ratios.values()), 3),
        "unit": "ratio, mean over tasks and kept experts",
        "detail": {"ratios": {name: round(ratio, 3) for name, ratio in ratios.items()}},
    }
    click.echo("\n" + json.dumps(report))


def _run(engine: TransformersEngine, out: Path, settings: dict[str, Any]) -> RunResult:
    """Return a run's result; its checkpoint is not kept."""
    kept = out.with_name(f"{out.name}.result")
    if not kept.is_dir():
        recipe = recipe_of(settings)
        with progress() as reporter:
            result = compress(
                recipe, out, make_engine=lambda _: engine, reporter=reporter, force=True
            )
        kept.mkdir()
        result.save(kept)
        shutil.rmtree(out)
    return RunResult.load(kept)


def _table(full: RunResult, single: RunResult, kept: int) -> str:
    held_out = {q.variant: q for q in full.quality if q.split == "test"}
    rows = {_NAMES[name]: q for name, q in held_out.items()}
    top1 = single.quality_of("eep")
    if top1 is not None:
        rows[_NAMES["top1"]] = top1
    items = full.quality[0].items
    head = f"**{full.tasks[0]}, {kept} experts kept**, {items} held-out items\n\n"
    lines = ["| | accuracy | 95 % interval | on its search items |", "|---|---|---|---|"]
    lines += [_row(name, q, full, single) for name, q in rows.items()]
    return head + "\n".join(lines)


def _row(name: str, q: Quality, full: RunResult, single: RunResult) -> str:
    run = single if name == _NAMES["top1"] else full
    searched = run.quality_of(q.variant, "search")
    shown = f"{searched.accuracy:.3f}" if searched else ""
    maps = f", mean of {q.maps}" if q.maps > 1 else ""
    return f"| {name}{maps} | {q.accuracy:.3f} | {q.low:.3f} - {q.high:.3f} | {shown} |"


if __name__ == "__main__":
    main()
