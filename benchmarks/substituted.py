"""What it costs to drop experts, and to put a constant vector in place of the same experts.

    python -m benchmarks.substituted --bed testbed --model testbed --out substituted

For each share of the experts and each criterion both maps keep the same ones. The model is scored
once, on training text, which the vectors are of as well; perplexity is of held-out text. What was
measured is not measured again: the same command continues. Prints a Markdown table; the last line
of stdout is one JSON object.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import click

from benchmarks.criteria import Bed, Measured, scored_bench
from offline.plan.plan import plan
from offline.plan.recipe import PlanRecipe


@click.command(context_settings={"show_default": True})
@click.option("--bed", type=click.Choice(get_args(Bed)), required=True, help="whose text")
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--tasks", default="", help="names or YAML files, comma between them")
@click.option("--test-items", default=400, help="of each task")
@click.option("--ratios", default="0.25,0.5,0.75", help="shares of the experts that go")
@click.option("--criteria", default="min-ean,min-euf", help="which choose them")
@click.option("--sequences", default=16, help="of each domain, to score on")
@click.option("--heldout", default=8, help="sequences of each domain to measure on")
@click.option("--length", default=512, help="tokens of a sequence")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder to work in")
def main(
    bed: Bed, model: Path, tasks: str, ratios: str, criteria: str, out: Path, **sizes: int
) -> None:
    """Measure what is not there yet and print the table."""
    scores, bench = scored_bench(bed, model, tasks, out, {**sizes, "gradients": 0})
    found = {("base", "", ""): bench.measure(None)}
    for ratio in ratios.split(","):
        for word in criteria.split(","):
            for fate in ("dropped", "substituted"):
                recipe = PlanRecipe(
                    criterion=word, ratio=float(ratio), substitute=fate == "substituted"
                )
                found[ratio, word, fate] = bench.measure(plan(scores, recipe).routing_map)
    click.echo(_table(found))
    click.echo("\n" + json.dumps(_report(found)))


def _table(found: Mapping[tuple[str, str, str], Measured]) -> str:
    base = found["base", "", ""]
    tasks = [f"accuracy, {Path(name).stem}" for name in base.accuracies]
    head = ["go", "criterion", "fate", "perplexity", *tasks]
    rows = [head, ["---"] * len(head)]
    for (ratio, word, fate), one in found.items():
        share = ratio if ratio == "base" else f"{float(ratio):.0%}"
        accuracies = [f"{value:.3f}" for value in one.accuracies.values()]
        rows.append([share, word, fate, f"{math.exp(one.loss):.2f}", *accuracies])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _report(found: Mapping[tuple[str, str, str], Measured]) -> dict[str, Any]:
    base = found["base", "", ""].loss
    excess = {fate: 0.0 for fate in ("dropped", "substituted")}
    for (_, _, fate), one in found.items():
        if fate:
            excess[fate] += one.loss - base
    return {
        "name": "excess_log_perplexity_of_substituted_over_dropped",
        "value": round(excess["substituted"] / excess["dropped"], 3),
        "unit": "ratio, mean over the table's rows",
        "detail": [
            {
                "ratio": ratio,
                "criterion": word,
                "fate": fate,
                "perplexity": round(math.exp(one.loss), 3),
                "domains": {name: round(math.exp(loss), 2) for name, loss in one.losses.items()},
                "accuracy": {Path(name).stem: acc for name, acc in one.accuracies.items()},
            }
            for (ratio, word, fate), one in found.items()
        ],
    }


if __name__ == "__main__":
    main()
