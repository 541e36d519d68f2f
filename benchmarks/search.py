"""Candidates per minute: our ``fast`` search in a live vLLM engine against the released procedure.

    python -m benchmarks.search --model base

Same model, tasks and items in one run, a generation task and a log-likelihood task. Candidates are
different ones: the released search evaluates copies too, and their share is counted by drawing its
children. The detail says what each accelerator gives by itself. The last line of stdout is one
JSON object.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.released import Released
from offline.engines.base import Engine
from offline.engines.live.engine import VllmEngine
from offline.fitness.assessor import Assessor
from offline.fitness.candidate import Assessment
from offline.fitness.log import EvaluationLog
from offline.fitness.objective import Objective
from offline.fitness.racing import RacingSettings
from offline.fitness.usage import usage_of
from offline.maps.genome import Genome
from offline.maps.map_space import Space
from offline.maps.moe_shape import MoeShape
from offline.methods import eep
from offline.methods.baselines import by_use
from offline.methods.search import Search
from offline.runs.device import pick_device, pick_dtype
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap

_SAY = Console(stderr=True, highlight=False, markup=False)
_MADE = Provenance.now("benchmark")
_WARM_UP = 4  # items
_GENERATION, _CHOICE = "basic_skills_common_knowledge_gen@32", "sciq"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    keep: int
    items: int
    candidates: int  # of our search
    released: int  # of the released procedure, which is slow


@click.command(context_settings={"show_default": True})
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--generation", default=_GENERATION, help="a task whose answers are generated")
@click.option("--choice", default=_CHOICE, help="a task scored by log-likelihood")
@click.option("--keep", default=4)
@click.option("--items", default=128)
@click.option("--candidates", default=48)
@click.option("--released", default=2)
def main(model: Path, generation: str, choice: str, **sizes: int) -> None:
    """Measure both tasks and print one line of JSON."""
    size = Sizes(**sizes)
    space = Space.of(MoeShape.of(Checkpoint.open(model)), size.keep)
    tasks = {"generation": generation, "log-likelihood": choice}
    device = pick_device("auto")
    dtype = pick_dtype("auto", device)
    released_engine = Released(model, device, dtype)
    slow = {kind: _released(released_engine, space, task, size) for kind, task in tasks.items()}
    del released_engine
    fast: dict[str, dict[str, Any]] = {kind: {} for kind in tasks}
    for share in (True, False):
        with VllmEngine(model, dtype=dtype, share_contexts=share) as engine:
            for kind, task in tasks.items():
                fast[kind] |= _ours(engine, space, task, size, share=share)
    different = _different_share(space)
    detail = {kind: _detail(slow[kind], different, fast[kind], tasks[kind]) for kind in tasks}
    report = {
        "name": "search_candidates_per_minute_fast_over_released",
        "value": detail["generation"]["candidates_per_minute_ratio"],
        "unit": "ratio, generation task",
        "detail": {**detail, "model": model.name, "dtype": dtype, "sizes": sizes},
    }
    click.echo(json.dumps(report))


def _released(engine: Released, space: Space, task: str, size: Sizes) -> float:
    """Return seconds per candidate of the released procedure, half of them merged."""
    objective = Objective.parse(task).tasks[0].task
    seconds = []
    engine.apply(_candidates(space, 1)[0])
    engine.evaluate(objective, "search", _WARM_UP)
    for routing_map in _candidates(space, size.released):
        begin = time.perf_counter()
        engine.apply(routing_map)
        engine.evaluate(objective, "search", size.items)
        seconds.append(time.perf_counter() - begin)
    _SAY.print(f"released procedure, {task}: {[round(s, 2) for s in seconds]} s per candidate")
    return statistics.median(seconds)


def _candidates(space: Space, count: int) -> list[RoutingMap]:
    """Return random candidates, every second one with noise as in the merging phase."""
    groups = space.groups(4)
    settings = eep.settings_of(
        "paper", num_initial=count, prune_until=count, num_evaluations=2 * count
    )
    found: list[Genome] = []

    def assess(genomes: Any, _: Any) -> list[eep.Assessed]:
        found.extend(genomes)
        return [eep.Assessed(0.5) for _ in genomes]

    for _ in eep.search(space, settings, assess, random.Random(0)):
        pass
    chosen = [found[n // 2] if n % 2 == 0 else found[count + n // 2] for n in range(count)]
    return [space.genome_map(genome, groups, _MADE) for genome in chosen]


def _different_share(space: Space) -> float:
    """Return which share of the released search's candidates differ from all before them.

    Its own numbers (100 + 300 candidates), with fitness values at random.
    """
    settings = eep.settings_of("paper", skip_known=False)
    chance = random.Random(0)
    known: list[str] = []

    def assess(genomes: Any, _: Any) -> list[eep.Assessed]:
        known.extend(genome.key for genome in genomes)
        return [eep.Assessed(0.5 + 0.03 * chance.random()) for _ in genomes]

    for _ in eep.search(space, settings, assess, random.Random(0)):
        pass
    return len(set(known)) / len(known)


def _ours(
    engine: VllmEngine, space: Space, task: str, size: Sizes, *, share: bool
) -> dict[str, Any]:
    """Measure whole candidates, then a search with racing; contexts shared or not."""
    objective = Objective.parse(task, items={"search": size.items})
    plain = _plain_seconds(engine, objective, space)
    name = "shared" if share else "separate"
    _SAY.print(f"vLLM, contexts {name}, {task}: {plain:.2f} s per whole candidate")
    if not share:
        return {"separate": plain}
    seconds, found = _search(engine, objective, space, size)
    return {"shared": plain, "search": seconds, "found": found}


def _plain_seconds(engine: Engine, objective: Objective, space: Space) -> float:
    task, limit = objective.tasks[0].task, objective.items["search"]
    seconds = []
    engine.evaluate(task, "search", _WARM_UP)
    for routing_map in _candidates(space, 2):
        begin = time.perf_counter()
        engine.apply(routing_map)
        engine.evaluate(task, "search", limit)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def _search(
    engine: Engine, objective: Objective, space: Space, size: Sizes
) -> tuple[float, list[Assessment]]:
    """Run the ``fast`` search; return its seconds, the watching of the base included."""
    settings = eep.settings_of("fast", num_evaluations=size.candidates)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        log = EvaluationLog(Path(scratch) / "log.jsonl")
        assessor = Assessor(
            [engine], objective, log, racing=RacingSettings(slack=settings.mutation_threshold)
        )
        search = Search(space, settings, assessor, _MADE)
        search.run(random.Random(0), by_use(space, usage_of(engine, objective), search.groups))
    return time.perf_counter() - begin, search.candidates


def _detail(released: float, different: float, ours: dict[str, Any], task: str) -> dict[str, Any]:
    found: list[Assessment] = ours["found"]
    per_candidate = ours["search"] / len(found)
    all_items = max(one.items for one in found) * len(found)
    seen = sum(one.items for one in found)
    return {
        "task": task,
        "candidates_per_minute_ratio": round(released / different / per_candidate, 2),
        "released_seconds_per_candidate": round(released, 3),
        "fast_seconds_per_candidate": round(per_candidate, 3),
        "factor_engine": round(released / ours["separate"], 2),
        "factor_shared_contexts": round(ours["separate"] / ours["shared"], 2),
        "factor_no_copies": round(1 / different, 2),
        "factor_racing_items": round(all_items / seen, 2),
        "candidates": len(found),
        "dropped": sum(not one.complete for one in found),
        "best_fitness": max(one.fitness for one in found if one.complete),
    }


if __name__ == "__main__":
    main()
