"""`vmprune eval`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import click
import cloup

from offline.cli.evaluated import say_json, say_text
from offline.cli.models import NAMES, model_folder
from offline.cli.prompting import prompting_of, prompting_options
from offline.cli.quiet import QUIET_SETTINGS
from offline.runs.device import DType
from vllm_moe_prune.errors import PruneError

EngineName = Literal["transformers", "vllm"]

if TYPE_CHECKING:
    from offline.engines.live.engine import VllmEngine
    from offline.engines.local.transformers import TransformersEngine
    from offline.runs.progress import Reporter
    from offline.tasks.catalog import Library, Split, Task
    from offline.tasks.results import TaskResult
    from vllm_moe_prune.routing_map import RoutingMap


@cloup.command(name="eval", epilog="Example: vmprune eval --model pruned --task sciq --limit 200")
@click.option(
    "--model", type=click.Path(path_type=Path), required=True, help=f"any checkpoint: {NAMES}"
)
@click.option(
    "--task",
    "task_name",
    required=True,
    help="a task, group or tag by name, built-in or of lm-evaluation-harness (see docs/tasks.md), "
    "or an lm-eval YAML file; several with commas",
)
@click.option("--metric", help="the one that is the accuracy; --task NAME:METRIC says the same")
@click.option(
    "--shots",
    type=click.IntRange(min=0),
    help="examples with their answers before every question; --task NAME@K says the same",
)
@click.option(
    "--include-path",
    type=click.Path(path_type=Path),
    multiple=True,
    help="folder of your own lm-eval YAML files, whose names are known too",
)
@click.option(
    "--allow-code-execution",
    is_flag=True,
    help="let tasks run the programs that the model writes, on this machine",
)
@click.option(
    "--split",
    help="search, selection, test (the held-out one) or all (what lm-evaluation-harness asks); "
    "test if not given, all for its tasks",
)
@click.option("--limit", type=click.IntRange(min=1), help="items; all if not given")
@click.option(
    "--map",
    "map_path",
    type=click.Path(path_type=Path),
    help=f"routing map to apply: {NAMES}",
)
@click.option("--allow-other-base", is_flag=True, help="apply a map made for another base")
@click.option("--endpoint", help="score the model that the server at this address serves")
@click.option("--served-name", help="the model's name there; the first that it serves")
@prompting_options
@click.option(
    "--engine",
    type=click.Choice(["transformers", "vllm"]),
    default="transformers",
    show_default=True,
    help="vllm: the model as it is served, also quantised or on several GPUs",
)
@click.option(
    "--tensor-parallel",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="with --engine vllm: ranks that share the model",
)
@click.option("--device", default="auto", show_default=True, help="of --engine transformers")
@click.option("--dtype", type=click.Choice(get_args(DType)), default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="print JSON on stdout, with every item")
@cloup.option("-q", "--quiet", **QUIET_SETTINGS)
def evaluate(
    model: Path,
    task_name: str,
    metric: str | None,
    shots: int | None,
    include_path: tuple[Path, ...],
    allow_code_execution: bool,
    split: str | None,
    limit: int | None,
    map_path: Path | None,
    allow_other_base: bool,
    endpoint: str | None,
    served_name: str | None,
    engine: EngineName,
    tensor_parallel: int,
    device: str,
    dtype: DType,
    as_json: bool,
    **prompting: Any,
) -> None:
    """Measure a checkpoint's accuracy on a task, with its 95 % confidence interval.

    A compact checkpoint is evaluated as its base with its routing map: --model BASE --map PRUNED.

    With --endpoint URL the model is not loaded but asked over HTTP: --model is then the checkpoint
    that is served, of any form, or its base, for the tokenizer. With --apply-chat-template written
    answers are asked at /v1/chat/completions, whose server applies its own template; choices are
    scored at /v1/completions, in the template of --model's tokenizer: a chat gives no scores.
    """
    from offline.cli.progress import progress
    from offline.data.models import complete
    from offline.engines.needs import check_evaluable
    from offline.engines.server import Endpoint
    from offline.runs.device import check_device
    from offline.tasks.catalog import Library, check_split
    from offline.tasks.needs import check_answered, check_items, check_written
    from offline.tasks.prompting_settings import check_chat
    from vllm_moe_prune.checkpoint import read_config
    from vllm_moe_prune.repository import load_map

    put = prompting_of(prompting)
    library = Library(include_path, allow_code_execution, put.prompting)
    tasks = _tasks(task_name, metric, shots, library)
    for task in tasks:
        if task.lm_eval is None:
            check_answered(task)
    check_written(tasks)
    asked = [(task, check_split(split or ("all" if task.lm_eval else "test"))) for task in tasks]
    model = model_folder(model)
    check_chat(put, model)
    more: dict[str, Any] = {}
    if given := put.model_dump(exclude_none=True):
        more["prompting"] = given
    if endpoint is None:
        if served_name is not None:
            raise PruneError("--served-name needs --endpoint")
        routing_map = load_map(map_path) if map_path else None
        _check_engine(engine, tensor_parallel, device)
        check_device(device)
        check_evaluable(
            model, routing_map, allow_other=allow_other_base, engine=engine, dtype=dtype
        )
        for task, known in asked:
            check_items(task, known)
        complete(model)
        with progress() as reporter:
            reporter.stage("loading the model", 1)
            with contextlib.ExitStack() as held:
                ask: Callable[..., TaskResult]
                if engine == "vllm":
                    room = put.max_gen_tokens or 0
                    live = _served(model, routing_map, dtype, tensor_parallel, room)
                    ask = held.enter_context(live).evaluate
                else:
                    ask = _loaded(model, routing_map, device, dtype).evaluate
                results = _measured(ask, asked, limit, reporter)
    else:
        _refuse(
            {
                "--map": map_path is not None,
                "--allow-other-base": allow_other_base,
                "--device": device != "auto",
                "--dtype": dtype != "auto",
                "--engine": engine != "transformers",
                "--tensor-parallel": tensor_parallel > 1,
            }
        )
        read_config(model)
        Endpoint.find(endpoint, served_name)
        for task, known in asked:
            check_items(task, known)
        from offline.engines.endpoint import EndpointLM, base_of
        from offline.tasks.harness import run

        with progress() as reporter:
            lm = EndpointLM.connect(endpoint, model, served_name)
            results = _measured(functools.partial(run, lm), asked, limit, reporter)
        more |= {
            "endpoint": lm.endpoint.url,
            "served_name": lm.endpoint.model,
            "base": base_of(model).model_dump(),
        }
    say = say_json if as_json else say_text
    for (task, _), result in zip(asked, results, strict=True):
        say(task, result, more)
    if len(results) > 1 and not as_json:
        count = sum(len(result.items) for result in results)
        mean = sum(result.accuracy * len(result.items) for result in results) / count
        click.echo(f"all {len(results)} tasks: {mean:.3f} ({count} items, each counted once)")


def _tasks(names: str, metric: str | None, shots: int | None, library: Library) -> tuple[Task, ...]:
    """Return the tasks that are asked, each with the metric and the examples that flags name."""
    from offline.tasks.catalog import get_tasks

    found: list[Task] = []
    for name in (part.strip() for part in names.split(",")):
        stem, at, given = name.rpartition("@")
        if not (at and given.isdigit()):
            stem, given = name, ""
        if given and shots is not None:
            raise PruneError(
                f"--task {name} and --shots {shots} both say how many examples there are",
                hint="give one of the two",
            )
        whole = f"{stem}:{metric}" if metric else stem
        examples = given or ("" if shots is None else str(shots))
        found += get_tasks(f"{whole}@{examples}" if examples else whole, library)
    return tuple(found)


def _measured(
    ask: Callable[..., TaskResult],
    asked: Sequence[tuple[Task, Split]],
    limit: int | None,
    reporter: Reporter,
) -> list[TaskResult]:
    reporter.stage("evaluating", len(asked))
    results = []
    for task, split in asked:
        results.append(ask(task, split, limit))
        reporter.step(note=task.name)
    return results


def _check_engine(engine: EngineName, tensor_parallel: int, device: str) -> None:
    """Refuse flags that are of the other engine."""
    if engine == "transformers" and tensor_parallel > 1:
        raise PruneError("--tensor-parallel is of --engine vllm", hint="add --engine vllm")
    if engine == "vllm" and device != "auto":
        raise PruneError("--device is of --engine transformers", hint="leave out --device")


def _loaded(
    model: Path, routing_map: RoutingMap | None, device: str, dtype: DType
) -> TransformersEngine:
    """Load a checkpoint into this process and apply a routing map to it."""
    from offline.engines.local.transformers import TransformersEngine
    from offline.runs.device import pick_device, pick_dtype

    device = pick_device(device)
    engine = TransformersEngine(model, device=device, dtype=pick_dtype(dtype, device))
    engine.apply(routing_map)
    return engine


def _served(
    model: Path, routing_map: RoutingMap | None, dtype: DType, tensor_parallel: int, room: int
) -> VllmEngine:
    """Load a checkpoint into vLLM and apply a routing map to it.

    :param room: tokens of longer answers than usual
    """
    from offline.engines.live.engine import VllmEngine
    from offline.runs.device import pick_dtype
    from serve.server import cpu_build

    engine = VllmEngine(
        model,
        dtype=pick_dtype(dtype, "cpu" if cpu_build() else "cuda"),
        tensor_parallel_size=tensor_parallel,
        answer_tokens=room,
    )
    try:
        engine.apply(routing_map)
    except BaseException:
        engine.close()
        raise
    return engine


def _refuse(flags: dict[str, bool]) -> None:
    """Refuse flags that say how to load a model where a server has loaded it."""
    for flag, given in flags.items():
        if given:
            raise PruneError(f"{flag} does not go with --endpoint", hint="the server decides that")
