"""`vmprune eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import click

from offline.recipe import DType


@click.command(name="eval", epilog="Example: vmprune eval --model pruned --task sciq --limit 200")
@click.option("--model", type=click.Path(path_type=Path), required=True, help="any checkpoint")
@click.option("--task", "task_name", required=True, help="a known task, or an lm-eval YAML file")
@click.option("--split", default="test", show_default=True, help="search, selection or test")
@click.option("--limit", type=click.IntRange(min=1), help="items; all if not given")
@click.option("--map", "map_path", type=click.Path(path_type=Path), help="routing map to apply")
@click.option("--allow-other-base", is_flag=True, help="apply a map made for another base")
@click.option("--device", default="auto", show_default=True)
@click.option("--dtype", type=click.Choice(get_args(DType)), default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="print JSON on stdout, with every item")
def evaluate(
    model: Path,
    task_name: str,
    split: str,
    limit: int | None,
    map_path: Path | None,
    allow_other_base: bool,
    device: str,
    dtype: DType,
    as_json: bool,
) -> None:
    """Measure a checkpoint's accuracy on a task, with its 95 % confidence interval.

    A compact checkpoint is evaluated as its base with its routing map: --model BASE --map PRUNED.
    """
    from offline.tasks.catalog import check_split, get_task

    task, known_split = get_task(task_name), check_split(split)
    from offline.device import pick_device, pick_dtype
    from offline.engines.transformers import TransformersEngine
    from vllm_moe_prune.routing_map import RoutingMap

    routing_map = RoutingMap.load(map_path) if map_path else None
    device = pick_device(device)
    engine = TransformersEngine(model, device=device, dtype=pick_dtype(dtype, device))
    if routing_map is not None:
        routing_map.check_base(
            engine.fingerprint, engine.expert_counts, allow_other=allow_other_base
        )
    engine.apply(routing_map)
    result = engine.evaluate(task, known_split, limit)
    low, high = result.confidence_interval()
    if as_json:
        facts = {"accuracy": result.accuracy, "low": low, "high": high, **result.to_json()}
        click.echo(json.dumps(facts))
    else:
        click.echo(
            f"{task.title}, {split}: {result.accuracy:.3f} "
            f"(95 % {low:.3f} - {high:.3f}, {len(result.items)} items)"
        )
