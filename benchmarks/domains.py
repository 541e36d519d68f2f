"""Do the experts that matter for a domain survive a plan that is made for it?

    python -m benchmarks.domains --bed testbed --model testbed --domain python --out criteria

Ground truth is ablation: each expert of each layer is masked alone, and what that costs on held-out
text of the domain says how much it matters. A plan from that domain's scores alone should keep
those that matter most. OUT is the folder of `benchmarks.criteria`, whose scores are used again.
Prints a Markdown table; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import click
import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.criteria import Bed, Bench, scores_of, sequences_of, texts_of
from offline.calibration.scores import Scores
from offline.criteria.registry import CRITERIA, Rule
from offline.engines.local.transformers import TransformersEngine
from offline.maps.map_space import Kept, Space
from offline.maps.moe_shape import MoeShape
from offline.plan.plan import plan
from offline.plan.recipe import PlanRecipe
from offline.runs.device import pick_device, pick_dtype
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.provenance import Provenance

Costs = Mapping[int, NDArray[np.float64]]  # decoder layer -> what each expert's loss costs, [E]


@click.command(context_settings={"show_default": True})
@click.option("--bed", type=click.Choice(get_args(Bed)), required=True, help="whose text")
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--domain", required=True)
@click.option("--ratio", default=0.5, help="share of the experts dropped")
@click.option("--sequences", default=16, help="of each domain, to score on")
@click.option("--heldout", default=8, help="sequences of the domain to measure on")
@click.option("--length", default=512, help="tokens of a sequence")
@click.option("--gradients/--no-gradients", default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder to work in")
def main(bed: Bed, model: Path, domain: str, ratio: float, out: Path, **sizes: int) -> None:
    """Ablate, plan, compare and print."""
    out.mkdir(parents=True, exist_ok=True)
    device = pick_device("auto")
    engine = TransformersEngine(model, device=device, dtype=pick_dtype("auto", device))
    train, held_out = texts_of(bed)
    scores = scores_of(engine, train, out, sizes)
    ids = {domain: sequences_of(engine, held_out[domain], sizes)}
    bench = Bench(engine, ids, (), 0, out / f"ablated-{domain}.jsonl")
    base = bench.measure(None).loss
    costs = _costs(bench, model, base)
    keep = len(next(iter(costs.values()))) - math.floor(ratio * len(next(iter(costs.values()))))
    rows = []
    for name, criterion in CRITERIA.items():
        if not criterion.needs_gradients or sizes["gradients"]:
            rows.append(_row(Rule(name, criterion.better), scores, domain, keep, costs, bench))
    rows.sort(key=lambda row: -float(row["survive"]))
    click.echo(_table(rows, base, domain))
    best = {str(row["criterion"]): float(row["survive"]) for row in rows}
    report = {
        "name": "experts_that_matter_kept_by_min_ean_over_chance",
        "value": round(best["min-ean"] / (keep / len(next(iter(costs.values())))), 3),
        "unit": f"ratio of shares, {keep} experts kept, domain {domain}",
        "detail": {"criteria": rows, "base_perplexity": round(math.exp(base), 2)},
    }
    click.echo("\n" + json.dumps(report))


def _costs(bench: Bench, model: Path, base: float) -> Costs:
    """Mask each expert alone; return how much the loss rises, in nats per token."""
    space = Space.of(MoeShape.of(Checkpoint.open(model)))
    everything: dict[int, Kept] = {n: tuple(range(e)) for n, e in space.num_experts.items()}
    costs = {}
    for layer, experts in space.num_experts.items():
        found = []
        for expert in range(experts):
            kept = everything | {layer: tuple(i for i in range(experts) if i != expert)}
            masked = space.routing_map(kept, Provenance.now("benchmark"))
            found.append(bench.measure(masked).loss - base)
        costs[layer] = np.array(found)
    return costs


def _row(
    rule: Rule, scores: Scores, domain: str, keep: int, costs: Costs, bench: Bench
) -> dict[str, float | str]:
    """Return how well a criterion's plan for the domain agrees with the ablation."""
    made = plan(scores, PlanRecipe(criterion=rule.word, keep=keep, domains=f"{domain}:1"))
    kept = {entry.layer: entry.experts.kept or () for entry in made.routing_map.layers}
    survive, ranks = [], []
    for layer, cost in costs.items():
        matter = np.argsort(-cost)[:keep]
        survive.append(np.isin(matter, kept[layer]).mean())
        order = rule.order(made.evidence[layer]).experts  # first dropped first
        ranks.append(spearmanr(np.argsort(order), cost).statistic)
    loss = bench.measure(made.routing_map).loss
    return {
        "criterion": rule.word,
        "survive": round(float(np.mean(survive)), 3),
        "rank_correlation": round(float(np.mean(ranks)), 3),
        "perplexity": round(math.exp(loss), 2),
    }


def _table(rows: list[dict[str, float | str]], base: float, domain: str) -> str:
    lines = [
        "| | of the experts that matter most, kept | rank correlation | perplexity |",
        "|---|---|---|---|",
        f"| base | 1 | | {math.exp(base):.2f} |",
    ]
    for row in rows:
        lines.append("| " + " | ".join(str(value) for value in row.values()) + " |")
    return f"**plans for {domain}**\n\n" + "\n".join(lines)


if __name__ == "__main__":
    main()
