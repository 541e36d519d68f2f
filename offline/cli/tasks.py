"""`vmprune tasks`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from vllm_moe_prune.errors import PruneError

_DETAILED = 200  # names of which the files are opened


@click.command(epilog="Example: vmprune tasks 'mmlu_*'")
@click.argument("pattern", required=False)
@click.option(
    "--include-path",
    type=click.Path(path_type=Path),
    multiple=True,
    help="folder of your own lm-eval YAML files, whose names are known too",
)
@click.option("--json", "as_json", is_flag=True, help="print JSON on stdout")
def tasks(pattern: str | None, include_path: tuple[Path, ...], as_json: bool) -> None:
    """List the tasks that --task takes: names, metrics and splits.

    PATTERN is a part of a name, or has * and ?; without one the built-in tasks are listed, which
    need no network.
    """
    found = list(_matching(pattern, include_path))
    if not found:
        raise PruneError(f"no task has {pattern!r} in its name")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for one in found:
        click.echo("  ".join(_words(one)))
    if pattern is None:
        click.echo("and all of lm-evaluation-harness: vmprune tasks PATTERN")


def _matching(pattern: str | None, include: tuple[Path, ...]) -> Iterator[dict[str, Any]]:
    import fnmatch

    from offline.tasks.catalog import TASKS
    from offline.tasks.index import folders, read_index

    wanted = pattern or ""
    glob = wanted if any(sign in wanted for sign in "*?[") else f"*{wanted}*"

    def matching(names: Iterable[str]) -> list[str]:
        return [name for name in names if fnmatch.fnmatchcase(name.lower(), glob.lower())]

    for name in matching(TASKS):
        task = TASKS[name]
        yield {"name": name, "kind": task.kind, "metrics": [task.metric], "splits": ["built-in"]}
    places = folders(include)
    if pattern is None and not include:
        return
    index = read_index(places if pattern else include)
    names = sorted(matching(index))
    for name in names:
        entry = index[name]
        shown = f"lm-eval:{name}" if name in TASKS else name
        if entry.kind != "task" or len(names) > _DETAILED:
            members = {"tasks": len(entry.members)} if entry.members else {}
            yield {"name": shown, "kind": entry.kind, **members}
        else:
            yield {"name": shown, **_detailed(name, index)}


def _detailed(name: str, index: Mapping[str, Any]) -> dict[str, Any]:
    from offline.tasks.definition import find

    try:
        (one,) = find(name, index)
    except PruneError as error:
        return {"kind": f"cannot be used: {error.message}"}
    return {
        "kind": one.kind,
        "metrics": list(one.metrics) or ["of its code"],
        "splits": list(one.splits),
        **({"examples": one.shots} if one.shots else {}),
        **({"executes code": True} if one.runs_code else {}),
    }


def _words(one: dict[str, Any]) -> Iterator[str]:
    yield f"{one['name']:40} {one['kind']:10}"
    for key in ("metrics", "splits"):
        if one.get(key):
            yield ", ".join(one[key])
    for key in ("tasks", "examples", "executes code"):
        if key in one:
            yield key if one[key] is True else f"{one[key]} {key}"
