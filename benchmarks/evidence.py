"""All methods at equal bytes on one model, and what a sweep chooses among them.

    python -m benchmarks.evidence --bed testbed --model testbed \
        --tasks testbed/tasks/arithmetic.yaml,testbed/tasks/classify.yaml --out evidence

For each share of the experts that goes, every method of `benchmarks.evidence_methods` makes a
model with as many experts, from the same scores, and is measured on held-out items and documents:
accuracy, perplexity by the base's, agreement. Seeds are of the text that is scored, of searches and
of random maps. The sweep has all criteria (or those of `--criteria`), dropped, substituted and
merged, uniform and by budgets, and a search as long as EEP's from its best; its choice is its best
on search items. What was measured is not measured again: the same command continues. Prints a
Markdown table for each share; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import click

from benchmarks.criteria import Bed
from benchmarks.evidence_methods import METHODS, SWEEP
from benchmarks.evidence_runs import Bench, Found
from offline.criteria.registry import CRITERIA
from offline.results.estimate import Estimate

Rows = Mapping[str, Sequence[Found]]  # by method, one for each seed


@click.command(context_settings={"show_default": True})
@click.option("--bed", type=click.Choice(get_args(Bed)), required=True, help="whose text")
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--tasks", required=True, help="names or YAML files, comma between them")
@click.option("--ratios", default="0.25,0.5,0.75", help="shares of the experts that go")
@click.option("--method", "begins", multiple=True, help="beginning of the name of those to run")
@click.option("--criteria", default="", help="of the sweep, comma between them; all if none")
@click.option("--seeds", default=3)
@click.option("--sequences", default=16, help="of each domain, to score on")
@click.option("--documents", default=40, help="held-out ones of each domain")
@click.option("--search-items", default=200, help="of each task, for searches and the sweep")
@click.option("--test-items", default=400, help="held-out ones of each task")
@click.option("--evaluations", default=64, help="candidates of a search")
@click.option("--gradients/--no-gradients", default=True, help="criteria that need them, too")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder to work in")
def main(
    bed: Bed,
    model: Path,
    ratios: str,
    begins: tuple[str, ...],
    seeds: int,
    out: Path,
    **settings: Any,
) -> None:
    """Make and measure what is not there yet and print the tables."""
    out.mkdir(parents=True, exist_ok=True)
    chosen = [m for m in METHODS if settings["gradients"] or not m.needs_gradients]
    every = ",".join(m.name for m in chosen if m.name in CRITERIA)
    settings["criteria"] = settings["criteria"] or every
    chosen = [m for m in chosen if m.name.startswith(begins or "")]
    bench = Bench(bed, model, out, settings)
    base = bench.whole()
    found: dict[str, Rows] = {}
    for ratio in ratios.split(","):
        found[ratio] = {m.name: [bench.of(m, ratio, s) for s in range(seeds)] for m in chosen}
        click.echo(f"\n{_table(ratio, found[ratio], base)}")
    click.echo("\n" + json.dumps(_report(found)))


def _table(ratio: str, rows: Rows, base: Found) -> str:
    """Return a Markdown table, the best accuracy first: means over the seeds."""
    head = ["", "experts", "MiB", *base.tasks, "perplexity", "worst domain", "same first"]
    lines = [head, ["---"] * len(head), _row("base", [base])]
    ordered = sorted(rows.items(), key=lambda row: -_mean(row[1], "accuracy"))
    lines += [_row(name, found) for name, found in ordered]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"**{float(ratio):.0%} of the experts go**\n\n{text}"


def _row(name: str, found: Sequence[Found]) -> list[str]:
    """Return cells; an interval reaches from the lowest to the highest end of the seeds'."""
    chosen = ", ".join(dict.fromkeys(one.of for one in found if one.of))
    size = statistics.fmean(one.num_bytes for one in found) / 2**20
    cells = [f"{name} ({chosen})" if chosen else name, str(found[0].experts), f"{size:.1f}"]
    cells += [_over([one.tasks[task] for one in found], 3) for task in found[0].tasks]
    cells += [f"{_mean(found, 'perplexity'):.3f}", _over([one.worst for one in found], 3)]
    return [*cells, f"{_mean(found, 'same'):.3f}"]


def _over(found: Sequence[Estimate], digits: int) -> str:
    value = statistics.fmean(one.value for one in found)
    lows = [one.low for one in found if one.low is not None]
    highs = [one.high for one in found if one.high is not None]
    if len(lows) < len(found) or len(highs) < len(found):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ({min(lows):.{digits}f} - {max(highs):.{digits}f})"


def _mean(found: Sequence[Found], name: str) -> float:
    return statistics.fmean(getattr(one, name) for one in found)


def _report(found: Mapping[str, Rows]) -> dict[str, Any]:
    gaps = {}
    for ratio, rows in found.items():
        others = {name: _mean(r, "accuracy") for name, r in rows.items() if name != SWEEP}
        if SWEEP in rows and others:
            best = max(others, key=lambda name: others[name])
            gaps[ratio] = (best, _mean(rows[SWEEP], "accuracy") - others[best])
    return {
        "name": "sweeps_choice_minus_best_single_method",
        "value": round(statistics.fmean(gap for _, gap in gaps.values()), 4) if gaps else None,
        "unit": "held-out accuracy, mean over tasks, seeds and shares",
        "detail": {
            ratio: {
                "best": gaps.get(ratio, ("", None))[0],
                "gap": gaps.get(ratio, ("", None))[1],
                **{name: [one.to_json() for one in seeds] for name, seeds in rows.items()},
            }
            for ratio, rows in found.items()
        },
    }


if __name__ == "__main__":
    main()
