"""As many experts kept in each of three ways: evenly, by importance, by the layers' sensitivity.

    python -m benchmarks.budgets --bed testbed --model testbed --out budgets

For each criterion the same number of experts, and so of bytes, is kept in all layers together: the
same in each layer, where the criterion's shares of importance are largest, and where the sum of the
measured losses is least. The model is scored once and each layer's sensitivity measured once, on
training text; perplexity is of held-out text. What was measured is not measured again: the same
command continues. Prints a Markdown table; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click

from benchmarks.criteria import Bed, Measured, scored_bench
from offline.calibration.scores import Scores, identity_of
from offline.cli.progress import progress
from offline.engines.local.transformers import TransformersEngine
from offline.engines.opened import Where
from offline.fitness.documents import TextAsked, parse_texts
from offline.plan.plan import plan
from offline.plan.recipe import PlanRecipe
from offline.plan.sensitivity import SensitivityAsked, measure
from offline.results.sensitivity import Sensitivity
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.routing_map import RoutingMap

_SPREADS = ("uniform", "importance", "sensitivity")


@dataclass(frozen=True, slots=True)
class Row:
    """One spread: what each layer keeps, and what it costs."""

    ratio: float
    criterion: str
    spread: str
    kept: tuple[int, ...]
    excess: float  # of the log-perplexity over the base's, mean of the domains
    measured: Measured


@click.command(context_settings={"show_default": True})
@click.option("--bed", type=click.Choice(get_args(Bed)), required=True, help="whose text")
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--tasks", default="", help="names or YAML files, comma between them")
@click.option("--test-items", default=400, help="of each task")
@click.option("--ratios", default="0.25,0.5,0.75", help="shares of the experts that go")
@click.option("--criteria", default="min-ean,min-reap", help="which choose them")
@click.option("--top-k", help="active experts; the model's own if not given, and the floor")
@click.option("--sequences", default=16, help="of each domain, to score on")
@click.option("--documents", default=8, help="of each domain, to measure the layers on")
@click.option("--levels", default=6, help="numbers of experts that each layer is measured with")
@click.option("--heldout", default=8, help="sequences of each domain to measure on")
@click.option("--length", default=512, help="tokens of a sequence or a document")
@click.option("--seed", default=0, help="of the order of the documents")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder to work in")
def main(
    bed: Bed,
    model: Path,
    tasks: str,
    ratios: str,
    criteria: str,
    top_k: str | None,
    out: Path,
    **sizes: int,
) -> None:
    """Measure what is not there yet and print the table."""
    scores, bench = scored_bench(bed, model, tasks, out, {**sizes, "gradients": 0})
    base = bench.measure(None)
    rows = []
    for word in criteria.split(","):
        recipe = PlanRecipe(criterion=word, top_k=top_k, ratio=0.0)
        known = _sensitivity(bench.engine, scores, recipe, list(bench.ids), out, sizes)
        for ratio in map(float, ratios.split(",")):
            for spread, routing_map in _maps(scores, recipe, ratio, known).items():
                found = bench.measure(routing_map)
                kept = tuple(layer.num_kept for layer in routing_map.layers)
                rows.append(Row(ratio, word, spread, kept, found.loss - base.loss, found))
    click.echo(_table(rows, base))
    click.echo("\n" + json.dumps(_report(rows, base)))


def _sensitivity(
    engine: TransformersEngine,
    scores: Scores,
    recipe: PlanRecipe,
    domains: list[str],
    out: Path,
    sizes: Mapping[str, int],
) -> Sensitivity:
    """Measure the layers on the training text, or read what was measured before."""
    numbers = "-".join(str(sizes[name]) for name in ("documents", "levels", "length", "seed"))
    folder = out / f"{recipe.rule.word}-top-{recipe.top_k or 'own'}-{numbers}"
    if not folder.is_dir():
        spec = ",".join(f"{name}={out / name}.jsonl:{sizes['documents']}" for name in domains)
        text = TextAsked(parse_texts("--text", spec), length=sizes["length"], seed=sizes["seed"])
        asked = SensitivityAsked(
            Checkpoint.open(engine.folder),
            scores,
            identity_of(scores, out / "scores"),
            recipe,
            text,
            sizes["levels"],
            Where(),
        )
        with progress() as reporter:
            found = measure(engine, asked, reporter)
        folder.mkdir()
        found.save(folder)
    return Sensitivity.load(folder)


def _maps(
    scores: Scores, recipe: PlanRecipe, ratio: float, known: Sensitivity
) -> dict[str, RoutingMap]:
    """Return the map of each spread; all keep as many experts."""
    even = plan(scores, recipe.sized(ratio=ratio)).routing_map
    budget = recipe.sized(budget=sum(layer.num_kept for layer in even.layers))
    return dict(
        zip(
            _SPREADS,
            (
                even,
                plan(scores, budget).routing_map,
                plan(scores, budget, sensitivity=known).routing_map,
            ),
            strict=True,
        )
    )


def _table(rows: list[Row], base: Measured) -> str:
    tasks = [f"accuracy, {Path(name).stem}" for name in base.accuracies]
    head = ["go", "criterion", "spread", "experts of each layer", "perplexity, of base's", *tasks]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        accuracies = [f"{value:.3f}" for value in row.measured.accuracies.values()]
        kept = " ".join(map(str, row.kept))
        share = f"{row.ratio:.4g}"
        lines.append(
            [share, row.criterion, row.spread, kept, f"{math.exp(row.excess):.4f}", *accuracies]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _report(rows: list[Row], base: Measured) -> dict[str, Any]:
    excess = {(row.ratio, row.criterion, row.spread): row.excess for row in rows}
    pairs = {(ratio, word) for ratio, word, _ in excess}

    def over_uniform(spread: str) -> float:
        return statistics.fmean(excess[*pair, spread] - excess[*pair, "uniform"] for pair in pairs)

    return {
        "name": "log_perplexity_of_sensitivity_budget_over_uniform",
        "value": round(over_uniform("sensitivity"), 4),
        "unit": "nats per token at equal bytes, mean over ratios and criteria; below 0 is better",
        "detail": {
            "importance_over_uniform": round(over_uniform("importance"), 4),
            "base_perplexity": round(math.exp(base.loss), 3),
            "rows": [
                {
                    "ratio": row.ratio,
                    "criterion": row.criterion,
                    "spread": row.spread,
                    "kept": row.kept,
                    "perplexity_ratio": round(math.exp(row.excess), 4),
                    "accuracy": {Path(n).stem: a for n, a in row.measured.accuracies.items()},
                }
                for row in rows
            ],
        },
    }


if __name__ == "__main__":
    main()
