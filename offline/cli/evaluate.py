"""`vmprune eval`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
import cloup

from offline.cli.engine_flags import check_engine, refuse
from offline.cli.evaluated import say_json, say_quality, say_text
from offline.cli.models import NAMES, model_folder
from offline.cli.prompting import prompting_of, prompting_options
from offline.cli.quiet import QUIET_SETTINGS
from offline.cli.text_flags import text_options
from offline.engines.opened import EngineName, loaded, served
from offline.runs.device import DType
from vllm_moe_prune.errors import PruneError

if TYPE_CHECKING:
    from offline.engines.live.engine import VllmEngine
    from offline.engines.local.transformers import TransformersEngine
    from offline.results.text_quality import TextQuality
    from offline.runs.progress import Reporter
    from offline.tasks.catalog import Library, Split, Task
    from offline.tasks.results import TaskResult


@cloup.command(name="eval", epilog="Example: vmprune eval --model pruned --task sciq --limit 200")
@click.option(
    "--model", type=click.Path(path_type=Path), required=True, help=f"any checkpoint: {NAMES}"
)
@click.option(
    "--task",
    "task_name",
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
@text_options
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
    task_name: str | None,
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
    perplexity: str | None,
    agreement: str | None,
    base: str | None,
    length: int,
    seed: int,
    save: Path | None,
    **prompting: Any,
) -> None:
    """Measure a checkpoint on a task or on plain text, with 95 % confidence intervals.

    --perplexity and --agreement read documents of any text (docs/gates.md): what they are compared
    with is the base of --map, or --base.

    A compact checkpoint is evaluated as its base with its routing map: --model BASE --map PRUNED.

    With --endpoint URL the model is not loaded but asked over HTTP: --model is then the checkpoint
    that is served, of any form, or its base, for the tokenizer. With --apply-chat-template written
    answers are asked at /v1/chat/completions, whose server applies its own template; choices are
    scored at /v1/completions, in the template of --model's tokenizer: a chat gives no scores.
    """
    from offline.cli.progress import progress
    from offline.cli.text_measure import TextsAsked
    from offline.data.models import complete
    from offline.engines.needs import check_evaluable
    from offline.engines.server import Endpoint
    from offline.runs.device import check_device
    from offline.tasks.catalog import Library, check_split
    from offline.tasks.needs import check_answered, check_items, check_written
    from offline.tasks.prompting_settings import check_chat
    from vllm_moe_prune.checkpoint import read_config
    from vllm_moe_prune.repository import load_map

    texts = TextsAsked.of(perplexity, agreement, base, length, seed, has_map=map_path is not None)
    if task_name is None and texts is None:
        raise PruneError("nothing to measure", hint="give --task, --perplexity or --agreement")
    put = prompting_of(prompting)
    library = Library(include_path, allow_code_execution, put.prompting)
    tasks = () if task_name is None else _tasks(task_name, metric, shots, library)
    for task in tasks:
        if task.lm_eval is None:
            check_answered(task)
    if tasks:
        check_written(tasks)
    asked = [(task, check_split(split or ("all" if task.lm_eval else "test"))) for task in tasks]
    model = model_folder(model)
    check_chat(put, model)
    more: dict[str, Any] = {}
    if given := put.model_dump(exclude_none=True):
        more["prompting"] = given
    quality: TextQuality | None = None
    if endpoint is None:
        if served_name is not None:
            raise PruneError("--served-name needs --endpoint")
        routing_map = load_map(map_path) if map_path else None
        check_engine(engine, tensor_parallel, device)
        check_device(device)
        check_evaluable(
            model, routing_map, allow_other=allow_other_base, engine=engine, dtype=dtype
        )
        if texts:
            texts.check_base(engine, dtype)
        for task, known in asked:
            check_items(task, known)
        complete(model)
        with progress() as reporter:
            before = None
            if texts:
                before = texts.read_base(model, engine, device, dtype, tensor_parallel, reporter)
            reporter.stage("loading the model", 1)
            with contextlib.ExitStack() as held:
                opened: TransformersEngine | VllmEngine
                if engine == "vllm":
                    room = put.max_gen_tokens or 0
                    live = served(model, routing_map, dtype, tensor_parallel, room)
                    opened = held.enter_context(live)
                else:
                    opened = loaded(model, routing_map, device, dtype)
                results = _measured(opened.evaluate, asked, limit, reporter)
                if texts:
                    quality = texts.measure(opened, routing_map, before, model, reporter)
    else:
        refuse(
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
        if texts:
            texts.check_base("transformers", "auto")
        Endpoint.find(endpoint, served_name)
        for task, known in asked:
            check_items(task, known)
        from offline.engines.endpoint import EndpointLM, base_of
        from offline.tasks.harness import run

        with progress() as reporter:
            lm = EndpointLM.connect(endpoint, model, served_name)
            results = _measured(functools.partial(run, lm), asked, limit, reporter)
            if texts:
                quality = texts.measure_endpoint(lm, model, reporter)
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
    if quality:
        say_quality(quality, as_json=as_json)
        if save is not None:
            quality.save(save)


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
