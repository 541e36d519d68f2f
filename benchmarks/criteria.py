"""What each one-shot criterion costs: perplexity by domain and accuracy, for several ratios.

    python -m benchmarks.criteria --bed testbed --model testbed --out criteria

Every criterion in both directions, the merging baselines and random maps. The model is scored once,
on training text; perplexity is of held-out text. A map that several criteria choose is measured
once, and what was measured is not measured again: the same command continues. Prints one Markdown
table per ratio; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import click
import numpy as np
import torch

from offline.calibration.calibrate import calibrate
from offline.calibration.corpus import load_domains, parse_calibration
from offline.calibration.scores import Scores
from offline.criteria.registry import CRITERIA
from offline.engines.local.transformers import TransformersEngine
from offline.lottery.measure import loss_of
from offline.maps.map_space import Space
from offline.maps.moe_shape import MoeShape
from offline.methods.baselines import random_kept
from offline.methods.merging import MergeKind, merged_map
from offline.plan.plan import plan
from offline.plan.recipe import PlanRecipe
from offline.runs.device import pick_device, pick_dtype
from offline.tasks.catalog import get_task
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap

Bed = Literal["testbed", "demo"]
Texts = Mapping[str, list[str]]  # domain -> documents
_MADE = Provenance.now("benchmark")


@dataclass(frozen=True, slots=True)
class Measured:
    """A map's log-perplexity by domain and accuracy by task."""

    losses: dict[str, float]
    accuracies: dict[str, float]

    @property
    def loss(self) -> float:
        """Mean over the domains, each of which counts the same."""
        return statistics.fmean(self.losses.values())


@click.command(context_settings={"show_default": True})
@click.option("--bed", type=click.Choice(get_args(Bed)), required=True, help="whose text")
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--tasks", default="", help="names or YAML files, comma between them")
@click.option("--test-items", default=400, help="of each task")
@click.option("--ratios", default="0.25,0.5,0.75", help="shares of the experts dropped")
@click.option("--sequences", default=16, help="of each domain, to score on")
@click.option("--heldout", default=8, help="sequences of each domain to measure on")
@click.option("--length", default=512, help="tokens of a sequence")
@click.option("--random-maps", default=5)
@click.option("--gradients/--no-gradients", default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder to work in")
def main(bed: Bed, model: Path, tasks: str, ratios: str, out: Path, **sizes: int) -> None:
    """Measure what is not there yet and print the tables."""
    scores, bench = scored_bench(bed, model, tasks, out, sizes)
    base = bench.measure(None)
    detail: dict[str, Any] = {"base": _shown(base, base)}
    for ratio in map(float, ratios.split(",")):
        found = {name: _mean([bench.measure(m) for m in maps])
                 for name, maps in _maps(model, scores, ratio, sizes)}  # fmt: skip
        click.echo(f"\n{_table(ratio, found, base)}", nl=True)
        detail[f"{ratio:g}"] = {name: _shown(one, base) for name, one in found.items()}
    halves = detail.get("0.5") or detail[next(reversed(detail))]
    report = {
        "name": "excess_log_perplexity_of_min_ean_over_random",
        "value": round(halves["min-ean"]["excess"] / halves["random"]["excess"], 3),
        "unit": "ratio, half of the experts dropped one-shot",
        "detail": detail,
    }
    click.echo("\n" + json.dumps(report))


@dataclass(frozen=True, slots=True)
class Bench:
    """Measures maps, each once; a log remembers."""

    engine: TransformersEngine
    ids: Mapping[str, torch.Tensor]
    tasks: Sequence[str]
    items: int
    log: Path

    def measure(self, routing_map: RoutingMap | None) -> Measured:
        """Return what is in the log, or apply the map and measure."""
        digest = routing_map.digest() if routing_map else "base"
        for line in self.log.read_text().splitlines() if self.log.is_file() else ():
            row = json.loads(line)
            if row.pop("map") == digest:
                return Measured(**row)
        self.engine.apply(routing_map)
        losses = {name: loss_of(self.engine, ids.numpy()) for name, ids in self.ids.items()}
        accuracies = {
            name: self.engine.evaluate(get_task(name), "test", self.items).accuracy
            for name in self.tasks
        }
        with self.log.open("a") as log:
            row = {"map": digest, "losses": losses, "accuracies": accuracies}
            log.write(json.dumps(row) + "\n")
        return Measured(losses, accuracies)


def scored_bench(
    bed: Bed, model: Path, tasks: str, out: Path, sizes: Mapping[str, int]
) -> tuple[Scores, Bench]:
    """Open a model: its scores, on training text, and what measures its maps, on held-out text.

    :param tasks: names or YAML files, comma between them
    :param out: folder to work in
    """
    out.mkdir(parents=True, exist_ok=True)
    device = pick_device("auto")
    engine = TransformersEngine(model, device=device, dtype=pick_dtype("auto", device))
    train, held_out = texts_of(bed)
    scores = scores_of(engine, train, out, sizes)
    ids = {name: sequences_of(engine, held_out[name], sizes) for name in held_out}
    names = [name for name in tasks.split(",") if name]
    return scores, Bench(engine, ids, names, sizes["test_items"], out / "measured.jsonl")


def texts_of(bed: Bed) -> tuple[Texts, Texts]:
    """Return the documents to score on and to measure on."""
    corpora: Mapping[str, Any]
    if bed == "testbed":
        from benchmarks.testbed.text import load_corpora

        corpora = load_corpora()
    else:
        from offline.data.domains import load_corpora as load_demo
        from offline.texts.mixes import DEFAULT

        corpora = load_demo(names=[part.name for part in parse_calibration(DEFAULT)])
    train = {name: list(corpus.train) for name, corpus in corpora.items()}
    return train, {name: list(corpus.heldout) for name, corpus in corpora.items()}


def scores_of(
    engine: TransformersEngine, train: Texts, out: Path, sizes: Mapping[str, int]
) -> Scores:
    """Score the model on the training text, or read what was scored before."""
    if not (out / "scores").is_dir():
        specs = []
        for name, documents in train.items():
            file = out / f"{name}.jsonl"
            file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
            specs.append(f"{name}={file}:{sizes['sequences']}")
        parts = parse_calibration(",".join(specs))
        domains = load_domains(parts, engine.tokenizer, length=sizes["length"])
        engine.apply(None)
        calibrate(engine, domains, gradients=bool(sizes["gradients"])).save(out / "scores")
    return Scores.load(out / "scores")


def sequences_of(
    engine: TransformersEngine, documents: Sequence[str], sizes: Mapping[str, int]
) -> torch.Tensor:
    """Cut documents, joined by the end mark, into sequences [N, L]."""
    count, length = sizes["heldout"], sizes["length"]
    ids: list[int] = []
    for text in documents:
        ids += [*engine.tokenizer.encode(text), engine.tokenizer.eos_token_id]
    count = min(count, len(ids) // length)
    return torch.tensor(ids[: count * length]).view(count, length)


def _maps(
    model: Path, scores: Scores, ratio: float, sizes: Mapping[str, int]
) -> Iterator[tuple[str, list[RoutingMap]]]:
    """Yield name -> maps of which the mean is taken."""
    checkpoint = Checkpoint.open(model)
    experts = max(checkpoint.expert_counts().values())
    space = Space.of(MoeShape.of(checkpoint), experts - math.floor(ratio * experts))
    rng = random.Random(0)
    randoms = [random_kept(space, rng) for _ in range(sizes["random_maps"])]
    yield "random", [space.routing_map(kept, _MADE) for kept in randoms]
    for name, criterion in CRITERIA.items():
        if criterion.needs_gradients and not sizes["gradients"]:
            continue
        for direction in ("min", "max"):
            word = f"{direction}-{name}"
            yield word, [plan(scores, PlanRecipe(criterion=word, keep=space.keep)).routing_map]
    for kind in get_args(MergeKind):
        keep = space.even_counts()
        made = merged_map(space, scores.evidence(), keep, kind, "sum", _MADE)
        yield f"merged by {kind}", [made]


def _mean(found: Sequence[Measured]) -> Measured:
    def mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    return Measured(mean([f.losses for f in found]), mean([f.accuracies for f in found]))


def _shown(one: Measured, base: Measured) -> dict[str, Any]:
    return {
        "perplexity": round(math.exp(one.loss), 2),
        "excess": round(one.loss - base.loss, 4),
        "domains": {name: round(math.exp(loss), 2) for name, loss in one.losses.items()},
        "accuracy": {Path(name).stem: round(acc, 3) for name, acc in one.accuracies.items()},
    }


def _table(ratio: float, found: Mapping[str, Measured], base: Measured) -> str:
    """Return a Markdown table, best first; perplexities divided by the base's."""
    domains, tasks = list(base.losses), list(base.accuracies)
    head = ["", "all", *domains, *(Path(name).stem for name in tasks)]
    rows = [head, ["---"] * len(head), _row("base, perplexity", base, None)]
    ordered = sorted(found.items(), key=lambda entry: entry[1].loss)
    rows += [_row(name, one, base) for name, one in ordered]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"**{ratio:.0%} of the experts dropped**\n\n{lines}"


def _row(name: str, one: Measured, base: Measured | None) -> list[str]:
    def shown(loss: float, of_base: float) -> str:
        return f"{math.exp(loss - of_base):.2f}"

    before = base.losses if base else dict.fromkeys(one.losses, 0.0)
    cells = [shown(one.loss, base.loss if base else 0.0)]
    cells += [shown(loss, before[domain]) for domain, loss in one.losses.items()]
    return [name, *cells, *(f"{accuracy:.3f}" for accuracy in one.accuracies.values())]


if __name__ == "__main__":
    main()
