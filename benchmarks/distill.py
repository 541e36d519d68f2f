"""What the base's next tokens teach a pruned model that the text's own do not, at equal tokens.

    python -m benchmarks.distill --bed testbed --model testbed --out distill

The same sequences train the same weights of the same pruned model in the same order, once with the
loss of the text's next token and once with the distance to the base's distribution: the gates
alone (Router-KD, arXiv 2603.02217) and all weights. Of several learning rates each takes that with
the lowest perplexity on sequences kept aside. Measured on held-out documents: perplexity, how
often the base's likeliest token is the model's, KL(base || model); and how many of the greedy
answers to their beginnings loop (offline/check/traits.py). What was done is not done again: the
same command continues. Prints a Markdown table; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

import click

from benchmarks.criteria import Bed
from benchmarks.distill_runs import LOSSES, TRAINED, Bench, Told
from offline.cli.progress import progress

Found = dict[float, dict[str, Told]]


@click.command(context_settings={"show_default": True})
@click.option("--bed", type=click.Choice(get_args(Bed)), required=True, help="whose text")
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--ratios", default="0.5,0.75", help="shares of the experts dropped")
@click.option("--criterion", default="min-ean", help="which chooses them")
@click.option("--router-rates", default="0.01,0.03", help="learning rates of the gates")
@click.option("--all-rates", default="0.0003,0.001", help="learning rates of all weights")
@click.option("--sequences", default=32, help="of each domain, to train on; half to score on")
@click.option("--aside", default=2, help="sequences of each domain that choose the rate")
@click.option("--documents", default=40, help="held-out ones of each domain")
@click.option("--answers", default=20, help="of these, how many are continued")
@click.option("--answer-tokens", default=320)
@click.option("--length", default=512, help="tokens of a sequence")
@click.option("--batch", default=4, help="sequences of a step")
@click.option("--micro-batch", type=int, help="sequences in memory at once; all if not given")
@click.option("--mixed-precision/--no-mixed-precision", default=False, help="train in bfloat16")
@click.option("--seed", default=0)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder to work in")
def main(bed: Bed, model: Path, out: Path, ratios: str, **more: Any) -> None:
    """Do what is not done yet and print the table."""
    out.mkdir(parents=True, exist_ok=True)
    with progress() as reporter:
        bench = Bench.begin(bed, model, out, more, reporter)
        base = bench.measured("base", model)
        found: Found = {float(ratio): _compared(bench, ratio) for ratio in ratios.split(",")}
    click.echo("\n" + _table(base, found))
    click.echo("\n" + json.dumps(_report(base, found)))


def _compared(bench: Bench, ratio: str) -> dict[str, Told]:
    """Return the numbers of a pruned model and of its four finetunes."""
    pruned = bench.pruned(ratio)
    found = {"pruned": bench.measured(f"{ratio}-pruned", pruned)}
    for trainable in TRAINED:
        for loss in LOSSES:
            found[f"{trainable}, {loss}"] = bench.best(ratio, pruned, trainable, loss)
    return found


def _table(base: Told, found: Found) -> str:
    head = ["experts gone", "trained", "rate", "perplexity", "of the base's", "same first token"]
    head += ["KL to the base", "answers that loop", "training"]
    rows = [head, ["---"] * len(head), _row("none", "", base)]
    for ratio, each in found.items():
        rows += [_row(f"{ratio:.0%}", name, told) for name, told in each.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(share: str, name: str, told: Told) -> list[str]:
    quality = told["quality"]
    numbers = [
        "" if quality.get(key) is None else _interval(quality[key], digits)
        for key, digits in (
            ("perplexity", 1), ("ratio", 2), ("same_first", 3), ("divergence", 2)
        )
    ]  # fmt: skip
    looping = _interval(told["loops"]["greedy"], 2)
    took = f"{told['seconds']:.0f} s" if "seconds" in told else ""
    return [share, name, str(told.get("rate", "")), *numbers, looping, took]


def _interval(estimate: dict[str, float], digits: int) -> str:
    value, low, high = (f"{estimate[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low} - {high})"


def _report(base: Told, found: Found) -> dict[str, Any]:
    """Return what is left of the excess log-perplexity, distilled over next-token."""

    def excess(told: Told) -> float:
        return math.log(told["quality"]["ratio"]["value"])

    each = {
        f"{ratio:g}": {
            trainable: round(
                excess(one[f"{trainable}, distill"]) / excess(one[f"{trainable}, next-token"]), 3
            )
            for trainable in TRAINED
        }
        for ratio, one in found.items()
    }
    return {
        "name": "excess_log_perplexity_of_distilled_over_next_token_gates_alone",
        "value": next(iter(each.values()))["router"],
        "unit": "ratio, the first of the shares dropped; below 1 distilled is nearer to the base",
        "detail": {
            "ratios": each,
            "base": base,
            **{f"{ratio:g}": one for ratio, one in found.items()},
        },
    }


if __name__ == "__main__":
    main()
