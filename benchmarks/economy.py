"""Item evaluations that racing and seeding need to reach what a plain search reaches.

    python -m benchmarks.economy --model testbed --task testbed/tasks/lookup.yaml

For every seed a plain search (every candidate on all items, random first generation) and one with
racing and seeds; how many items had the second evaluated when it reached the first one's best
fitness? Each accelerator is also measured alone. With ``--variants racing,both`` only those run,
and the first of them is what the others are compared with. The value is the median ratio of the
last over the seeds, infinite where the best was not reached. The last line of stdout is one JSON
object.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from offline.engines.base import Engine
from offline.engines.local.transformers import TransformersEngine
from offline.fitness.assessor import Assessor
from offline.fitness.candidate import Assessment
from offline.fitness.log import EvaluationLog
from offline.fitness.objective import Objective
from offline.fitness.racing import RacingSettings
from offline.fitness.usage import usage_of
from offline.maps.map_space import Space
from offline.maps.moe_shape import MoeShape
from offline.methods import eep
from offline.methods.baselines import by_use
from offline.methods.search import Search
from offline.runs.device import pick_device, pick_dtype
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.provenance import Provenance

_SAY = Console(stderr=True, highlight=False, markup=False)
_VARIANTS = {  # name -> (racing, seeding)
    "plain": (False, False),
    "racing": (True, False),
    "seeding": (False, True),
    "both": (True, True),
}


@dataclass(frozen=True, slots=True)
class Found:
    """One search: its candidates in order, and what its best is worth on held-out items."""

    candidates: Sequence[Assessment]
    held_out: float

    @property
    def best(self) -> float:
        """Best fitness of a candidate seen on all items."""
        return max(one.fitness for one in self.candidates if one.complete)

    @property
    def items(self) -> int:
        """Items evaluated in all."""
        return sum(one.items for one in self.candidates)

    def items_to(self, fitness: float) -> float:
        """Items evaluated until a complete candidate had this fitness; infinite if none did."""
        seen = 0
        for one in self.candidates:
            seen += one.items
            if one.complete and one.fitness >= fitness - 1e-12:
                return seen
        return math.inf


@click.command(context_settings={"show_default": True})
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--task", required=True)
@click.option("--keep", default=4)
@click.option("--groups", default=4)
@click.option("--items", default=200)
@click.option("--candidates", default=96)
@click.option("--seeds", default=5)
@click.option("--variants", default=",".join(_VARIANTS), help="comma between them")
@click.option("--held-out", default=400, help="items on which the chosen maps are compared")
def main(
    model: Path,
    task: str,
    keep: int,
    groups: int,
    items: int,
    candidates: int,
    seeds: int,
    variants: str,
    held_out: int,
) -> None:
    """Run the searches and print one line of JSON."""
    device = pick_device("auto")
    engine = TransformersEngine(model, device=device, dtype=pick_dtype("auto", device))
    space = Space.of(MoeShape.of(Checkpoint.open(model)), keep)
    objective = Objective.parse(task, items={"search": items, "test": held_out})
    settings = eep.settings_of(
        "fast", phases="prune", num_groups=groups, num_evaluations=candidates
    )
    names = variants.split(",")
    found: dict[str, list[Found]] = {name: [] for name in names}
    for seed in range(seeds):
        for name in names:
            racing, seeding = _VARIANTS[name]
            one = _search(engine, space, objective, settings, seed, racing, seeding)
            found[name].append(one)
            _SAY.print(
                f"seed {seed}, {name}: best {one.best:.3f} on {one.items} items, "
                f"held-out {one.held_out:.3f}"
            )
    ratios = {
        name: [
            ours.items_to(plain.best) / plain.items_to(plain.best)
            for plain, ours in zip(found[names[0]], searches, strict=True)
        ]
        for name, searches in found.items()
    }
    totals = {
        name: [
            ours.items_to(plain.best) / plain.items
            for plain, ours in zip(found[names[0]], searches, strict=True)
        ]
        for name, searches in found.items()
    }
    report = {
        "name": "search_items_to_reach_the_plain_searchs_best",
        "value": _median(totals[names[-1]]),
        "unit": f"ratio of item evaluations, {names[-1]} over the whole {names[0]} search",
        "detail": {
            "over_the_whole_plain_search": {n: _each(v) for n, v in totals.items()},
            "over_plain_until_its_best": {n: _each(v) for n, v in ratios.items()},
            "best_fitness": {n: [round(f.best, 4) for f in v] for n, v in found.items()},
            "held_out": {n: [round(f.held_out, 4) for f in v] for n, v in found.items()},
            "dropped": {
                n: [sum(not c.complete for c in f.candidates) for f in v] for n, v in found.items()
            },
            "settings": settings.model_dump(),
            "racing": RacingSettings(slack=settings.mutation_threshold).model_dump(),
            "items": items,
            "task": objective.names[0],
        },
    }
    click.echo(json.dumps(report))


def _median(values: list[float]) -> float | None:
    median = statistics.median(values)
    return round(median, 3) if math.isfinite(median) else None


def _each(values: list[float]) -> dict[str, Any]:
    shown = [round(value, 3) if math.isfinite(value) else None for value in values]
    return {"median": _median(values), "per_seed": shown}


def _search(
    engine: Engine,
    space: Space,
    objective: Objective,
    settings: eep.EepSettings,
    seed: int,
    racing: bool,
    seeding: bool,
) -> Found:
    with tempfile.TemporaryDirectory() as scratch:
        log = EvaluationLog(Path(scratch) / "log.jsonl")
        race = RacingSettings(slack=settings.mutation_threshold) if racing else None
        assessor = Assessor([engine], objective, log, racing=race)
        search = Search(space, settings, assessor, Provenance.now("benchmark"))
        initial = by_use(space, usage_of(engine, objective), search.groups) if seeding else []
        population = search.run(random.Random(seed), initial)
        results = assessor.evaluate(search.map_of(eep.best(population)[0].genome), "test")
    return Found(search.candidates, objective.fitness(results))


if __name__ == "__main__":
    main()
