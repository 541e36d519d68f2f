"""`vmprune runs`: what lies in *.run folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from offline.cli.quiet import with_quiet

if TYPE_CHECKING:
    from collections.abc import Iterable

    from offline.runs.listing import RunFolder

_FOLDER = click.option(
    "--in",
    "folder",
    type=click.Path(path_type=Path),
    default=Path(),
    show_default=True,
    help="folder that the outputs lie in",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="print JSON on stdout")


@click.group(invoke_without_command=True, epilog="Example: vmprune runs --in work")
@_FOLDER
@_JSON
@click.pass_context
def runs(context: click.Context, folder: Path, as_json: bool) -> None:
    """List the folders in which runs keep what lets them continue, with their sizes.

    OUT.run is kept when its command is over, so that other commands may go on from it; `vmprune
    runs clean` removes those whose OUT is there.
    """
    if context.invoked_subcommand is None:
        from offline.runs.listing import runs_in

        _show(runs_in(folder), as_json)


@runs.command(epilog="Example: vmprune runs clean --in work")
@_FOLDER
@_JSON
def clean(folder: Path, as_json: bool) -> None:
    """Remove the folders of runs that are finished, and what killed commands left beside outputs.

    A run whose OUT is not there, or of which that is not known, stays: the same command continues
    it. So does one that holds a file of yours.
    """
    from offline.runs.listing import clean as cleaned

    _show(cleaned(folder), as_json)


def _show(found: Iterable[RunFolder], as_json: bool) -> None:
    from offline.runs.units import gib

    found = list(found)
    if as_json:
        facts = [
            {"folder": str(one.folder), "bytes": one.num_bytes, "state": one.state} for one in found
        ]
        click.echo(json.dumps(facts))
        return
    for one in found:
        told = f": {one.told.removesuffix(',')}" if one.told else ""
        click.echo(f"{one.folder}  {gib(one.num_bytes)}  {one.state}{told}")
    click.echo(f"{len(found)} runs, {gib(sum(one.num_bytes for one in found))}")


for _command in (runs, clean):
    with_quiet(_command)
