"""`vmprune eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from offline.cli.models import NAMES, model_folder
from offline.runs.device import DType
from vllm_moe_prune.errors import PruneError

if TYPE_CHECKING:
    from offline.engines.local.transformers import TransformersEngine
    from vllm_moe_prune.routing_map import RoutingMap


@click.command(name="eval", epilog="Example: vmprune eval --model pruned --task sciq --limit 200")
@click.option(
    "--model", type=click.Path(path_type=Path), required=True, help=f"any checkpoint: {NAMES}"
)
@click.option("--task", "task_name", required=True, help="a known task, or an lm-eval YAML file")
@click.option(
    "--shots",
    type=click.IntRange(min=1),
    help="examples with their answers before every question; --task NAME@K says the same",
)
@click.option(
    "--split",
    default="test",
    show_default=True,
    help="search, selection or test (the held-out one)",
)
@click.option("--limit", type=click.IntRange(min=1), help="items; all if not given")
@click.option("--map", "map_path", type=click.Path(path_type=Path), help="routing map to apply")
@click.option("--allow-other-base", is_flag=True, help="apply a map made for another base")
@click.option("--endpoint", help="score the model that the server at this address serves")
@click.option("--served-name", help="the model's name there; the first that it serves")
@click.option("--device", default="auto", show_default=True)
@click.option("--dtype", type=click.Choice(get_args(DType)), default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="print JSON on stdout, with every item")
def evaluate(
    model: Path,
    task_name: str,
    shots: int | None,
    split: str,
    limit: int | None,
    map_path: Path | None,
    allow_other_base: bool,
    endpoint: str | None,
    served_name: str | None,
    device: str,
    dtype: DType,
    as_json: bool,
) -> None:
    """Measure a checkpoint's accuracy on a task, with its 95 % confidence interval.

    A compact checkpoint is evaluated as its base with its routing map: --model BASE --map PRUNED.

    With --endpoint URL the model is not loaded but asked over HTTP: --model is then the checkpoint
    that is served, of any form, or its base, for the tokenizer.
    """
    model = model_folder(model)
    from offline.cli.progress import progress
    from offline.data.models import complete
    from offline.runs.device import pick_device
    from offline.tasks.catalog import check_split, get_task
    from vllm_moe_prune.routing_map import RoutingMap

    task, known_split = get_task(task_name), check_split(split)
    if shots is not None:
        if task.shots:
            raise PruneError(
                f"--task {task_name} and --shots {shots} both say how many examples there are",
                hint="give one of the two",
            )
        task = get_task(f"{task_name}@{shots}")
    more: dict[str, Any] = {}
    if endpoint is None:
        if served_name is not None:
            raise PruneError("--served-name needs --endpoint")
        routing_map = RoutingMap.load(map_path) if map_path else None
        device = pick_device(device)
        complete(model)
        with progress() as reporter:
            reporter.stage("loading the model", 1)
            engine = _loaded(model, routing_map, allow_other_base, device, dtype)
            reporter.stage(f"evaluating {task.name} ({split})", 1)
            result = engine.evaluate(task, known_split, limit)
            reporter.step()
    else:
        _refuse(
            {
                "--map": map_path is not None,
                "--allow-other-base": allow_other_base,
                "--device": device != "auto",
                "--dtype": dtype != "auto",
            }
        )
        from offline.engines.endpoint import EndpointLM, base_of
        from offline.tasks.harness import run

        with progress() as reporter:
            reporter.stage(f"evaluating {task.name} ({split}) at {endpoint}", 1)
            lm = EndpointLM.connect(endpoint, model, served_name)
            result = run(lm, task, known_split, limit)
            reporter.step()
        more = {
            "endpoint": lm.endpoint.url,
            "served_name": lm.endpoint.model,
            "base": base_of(model).model_dump(),
        }
    low, high = result.confidence_interval()
    if as_json:
        facts = {"accuracy": result.accuracy, "low": low, "high": high, **more, **result.to_json()}
        click.echo(json.dumps(facts))
    else:
        click.echo(
            f"{task.title}, {split}: {result.accuracy:.3f} "
            f"(95 % {low:.3f} - {high:.3f}, {len(result.items)} items)"
        )


def _loaded(
    model: Path, routing_map: RoutingMap | None, allow_other_base: bool, device: str, dtype: DType
) -> TransformersEngine:
    """Load a checkpoint into this process and apply a routing map to it."""
    from offline.engines.local.transformers import TransformersEngine
    from offline.runs.device import pick_dtype

    engine = TransformersEngine(model, device=device, dtype=pick_dtype(dtype, device))
    if routing_map is not None:
        routing_map.check_base(
            engine.fingerprint, engine.expert_counts, allow_other=allow_other_base
        )
    engine.apply(routing_map)
    return engine


def _refuse(flags: dict[str, bool]) -> None:
    """Refuse flags that say how to load a model where a server has loaded it."""
    for flag, given in flags.items():
        if given:
            raise PruneError(f"{flag} does not go with --endpoint", hint="the server decides that")
