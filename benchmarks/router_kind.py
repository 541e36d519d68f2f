"""What slicing a router costs where the model does not renormalise its top-k weights.

    python -m benchmarks.router_kind --out router-kind

A Qwen2-MoE and an OLMoE are made of the test-bed's weights (8 experts, top-2) and trained for some
minutes on its text. Then plans of each criterion are made with `--router mapped`, which is exact,
and with `--router sliced`, whose softmax runs over the kept experts alone: perplexity of both on
held-out text, at several E'. Prints a Markdown table for each model; the last line of stdout is one
JSON object. The same command continues where it was killed.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import click

from benchmarks.criteria import Bench, Texts, scores_of, sequences_of, texts_of
from benchmarks.small_moe import FAMILIES, SHAPE, make_small_moe
from offline.calibration.scores import Scores
from offline.engines.local.transformers import TransformersEngine
from offline.maps.router_kind import RouterKind
from offline.plan.plan import plan
from offline.plan.recipe import PlanRecipe

_KINDS: tuple[RouterKind, ...] = ("mapped", "sliced")


@click.command(context_settings={"show_default": True})
@click.option("--families", default=",".join(FAMILIES))
@click.option("--steps", default=250, help="of 1,024 tokens, that each model is trained for")
@click.option("--criteria", default="min-euf,min-ean,min-reap")
@click.option("--keeps", default="6,4,3,2", help=f"experts to keep of {SHAPE.experts}")
@click.option("--sequences", default=16, help="of each domain, to score on")
@click.option("--heldout", default=16, help="sequences of each domain to measure on")
@click.option("--length", default=256, help="tokens of a sequence")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder to work in")
def main(families: str, steps: int, criteria: str, keeps: str, out: Path, **sizes: int) -> None:
    """Train what is not there yet, measure, and print the tables."""
    out.mkdir(parents=True, exist_ok=True)
    train, held_out = texts_of("testbed")
    detail: dict[str, Any] = {}
    for family in families.split(","):
        model = make_small_moe(family, out / family, train, steps, click.echo)
        found = _measured(model, train, held_out, criteria.split(","), keeps, sizes)
        click.echo(f"\n{_table(family, found)}")
        detail[family] = found
    half = f"{SHAPE.experts // 2}"
    costs = [
        row["sliced"] / row["mapped"]
        for found in detail.values()
        for row in found["plans"].get(half, {}).values()
    ]
    report = {
        "name": "perplexity_of_sliced_over_mapped_routers",
        "value": round(statistics.geometric_mean(costs), 3) if costs else None,
        "unit": f"ratio, geometric mean over models and criteria, {half} experts kept",
        "detail": detail,
    }
    click.echo("\n" + json.dumps(report))


def _measured(
    model: Path,
    train: Texts,
    held_out: Texts,
    criteria: list[str],
    keeps: str,
    sizes: dict[str, int],
) -> dict[str, Any]:
    """Return the base's perplexity, and E' -> criterion -> kind of router -> perplexity."""
    work = model.with_name(f"{model.name}-measured")
    work.mkdir(exist_ok=True)
    engine = TransformersEngine(model, device="cpu", dtype="float32")
    scores = scores_of(engine, train, work, {**sizes, "gradients": 0})
    ids = {name: sequences_of(engine, held_out[name], sizes) for name in held_out}
    bench = Bench(engine, ids, (), 0, work / "measured.jsonl")
    return {
        "base": round(math.exp(bench.measure(None).loss), 2),
        "plans": {
            keep: {word: _both(bench, scores, word, int(keep)) for word in criteria}
            for keep in keeps.split(",")
        },
    }


def _both(bench: Bench, scores: Scores, criterion: str, keep: int) -> dict[str, float]:
    found = {}
    for kind in _KINDS:
        recipe = PlanRecipe(criterion=criterion, keep=keep, router=kind)
        found[kind] = round(math.exp(bench.measure(plan(scores, recipe).routing_map).loss), 2)
    return found


def _table(family: str, found: dict[str, Any]) -> str:
    """Return a Markdown table of perplexities."""
    lines = [
        f"**{family}, all {SHAPE.experts} experts: {found['base']}**",
        "",
        "| E' | criterion | mapped | sliced | sliced over mapped |",
        "|---|---|---|---|---|",
    ]
    for keep, rows in found["plans"].items():
        for criterion, row in rows.items():
            ratio = row["sliced"] / row["mapped"]
            numbers = f"{row['mapped']} | {row['sliced']} | {ratio:.3f}"
            lines.append(f"| {keep} | {criterion} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
