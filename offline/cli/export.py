"""`vmprune export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import click

from offline.build.export import ExportFormat, is_export, pruner_call
from offline.build.export import export as exported
from offline.runs.output import check_file, write_file
from vllm_moe_prune.repository import load_map


@click.command(epilog="Example: vmprune export plan --format llm-compressor --out report.json")
@click.argument("map_path", metavar="MAP", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(get_args(ExportFormat)),
    default="kept-ids",
    show_default=True,
    help="who is to read it",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="file to write")
@click.option("--force", is_flag=True, help="replace OUT if it exists")
@click.option("--json", "as_json", is_flag=True, help="print JSON on stdout")
def export(map_path: Path, form: ExportFormat, out: Path, force: bool, as_json: bool) -> None:
    """Write which experts a routing map keeps, for another tool.

    MAP is a routing map or a pruned checkpoint, here or on the hub (Org/Name[@revision]). Maps that
    merge experts or mix their scores have no such form. Both formats are described in
    docs/routing-map.md.
    """
    check_file(out, force=force, ours=is_export, inputs=(map_path,))
    routing_map = load_map(map_path)
    content = exported(routing_map, form)
    write_file(out, content, force=force, ours=is_export)
    call = pruner_call(routing_map, str(out)) if form == "llm-compressor" else None
    if as_json:
        facts = {"out": str(out), "format": form, "digest": routing_map.digest(), "call": call}
        click.echo(json.dumps(facts))
        return
    click.echo(routing_map.summary())
    click.echo(f"written to {out}")
    if call:
        click.echo(f"use it: {call}")
