"""What rounds and finetunes save: perplexity one-shot, iterative and as a lottery.

    python -m benchmarks.lottery --bed testbed --model testbed --out lottery

Every criterion, and experts dropped at random, at several ratios. One lottery that goes on to the
highest ratio passes the others on its way; one-shot is a run of its own for each, and so is
one-shot-tuned, whose only finetune is as long as all of the lottery's together. The control is the
base with the same finetunes and every expert: what is due to more training and not to repair. The
base is scored and measured once, and what was measured is not measured again: the same command
continues. Perplexity is of held-out text. Prints one Markdown table per ratio; the last line of
stdout is one JSON object.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import click

from benchmarks.criteria import Bed
from benchmarks.lottery_runs import WAYS, Bench, Way
from offline.cli.progress import progress
from offline.results.lottery import Measured

Found = dict[tuple[str, Way, float], Measured]


@click.command(context_settings={"show_default": True})
@click.option("--bed", type=click.Choice(get_args(Bed)), required=True, help="whose text")
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--criteria", default="min-ean,min-ege,random")
@click.option("--ways", default="one-shot,iterative,lottery", help="also: one-shot-tuned")
@click.option("--ratios", default="0.25,0.5,0.75", help="shares of the experts dropped")
@click.option("--round-tokens", default=50_000, help="of the first finetune")
@click.option("--token-factor", default=2.0)
@click.option("--token-cap", default=400_000, help="of any finetune")
@click.option("--learning-rate", default=None, type=float, help="the preset's if not given")
@click.option("--trainable", default="all")
@click.option("--batch", default=8, help="sequences of a step")
@click.option("--micro-batch", type=int, help="sequences in memory at once; all if not given")
@click.option("--mixed-precision/--no-mixed-precision", default=False, help="train in bfloat16")
@click.option("--sequences", default=16, help="of each domain, to score on")
@click.option("--heldout", default=8, help="sequences of each domain to measure on")
@click.option("--length", default=512, help="tokens of a sequence")
@click.option("--random-seeds", default=5, help="random choices to take the mean of")
@click.option("--random-lotteries", default=1, help="of these, how many are finetuned")
@click.option("--seed", default=0)
@click.option("--control/--no-control", default=True, help="also finetune the base as long")
@click.option("--keep-weights/--no-keep-weights", help="keep the last checkpoint of every run")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder to work in")
def main(bed: Bed, model: Path, criteria: str, ways: str, ratios: str, **more: Any) -> None:
    """Run what is not there yet and print the tables."""
    words, chosen = criteria.split(","), [way for way in WAYS if way in ways.split(",")]
    dropped = sorted(float(ratio) for ratio in ratios.split(","))
    with progress() as reporter:
        bench = Bench.begin(bed, model, words, dropped, more, reporter)
        found = {
            (word, way, ratio): result
            for word in words
            for way in chosen
            for ratio, result in bench.results(word, way).items()
        }
        control = bench.control() if more["control"] else {}
    for ratio in dropped:
        click.echo(f"\n{_table(bench.base, control.get(ratio), ratio, found)}")
    click.echo("\n" + json.dumps(_report(bench, found, control)))


def _table(base: Measured, control: Measured | None, ratio: float, found: Found) -> str:
    """Return a Markdown table of perplexities and of the load's coefficient of variation."""
    head = ["", "all", *base.losses, "load CV"]
    rows = [head, ["---"] * len(head), _row("base", base)]
    if control is not None:
        rows.append(_row("base, trained as long", control))
    for (word, way, at), one in found.items():
        if at == ratio:
            rows.append(_row(f"{word}, {way}", one))
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"**{ratio:.0%} of the experts dropped: held-out perplexity**\n\n{lines}"


def _row(name: str, one: Measured) -> list[str]:
    numbers = [one.perplexity, *one.perplexities.values()]
    return [name, *(f"{number:.2f}" for number in numbers), f"{one.cv:.2f}"]


def _report(bench: Bench, found: Found, control: dict[float, Measured]) -> dict[str, Any]:
    def excess(key: tuple[str, Way, float]) -> float:
        return found[key].loss - bench.base.loss

    words = dict.fromkeys(word for word, _, _ in found)
    at = 0.5 if 0.5 in bench.ratios else max(bench.ratios)
    both = [w for w in words if {(w, "lottery", at), (w, "one-shot", at)} <= found.keys()]
    first = both[0] if both else None
    value = None
    if first is not None:
        value = round(excess((first, "lottery", at)) / excess((first, "one-shot", at)), 3)
    return {
        "name": f"excess_log_perplexity_of_lottery_over_one_shot_{first}",
        "value": value,
        "unit": f"ratio, {at:.0%} of the experts dropped",
        "detail": {
            "base": round(bench.base.perplexity, 3),
            "control": {f"{r:g}": round(one.perplexity, 3) for r, one in control.items()},
            **{
                f"{word} {way} {ratio:g}": {
                    "perplexity": round(one.perplexity, 3),
                    "excess": round(excess((word, way, ratio)), 4),
                    "load_cv": round(one.cv, 3),
                }
                for (word, way, ratio), one in found.items()
            },
        },
    }


if __name__ == "__main__":
    main()
