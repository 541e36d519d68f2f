"""`vmprune export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import click

from offline.build.export import ExportFormat, is_export, pruner_call
from offline.build.export import export as exported
from offline.cli.models import NAMES, model_folder
from offline.runs.output import check_file, check_output, write_file
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.repository import load_map

if TYPE_CHECKING:
    from vllm_moe_prune.routing_map import RoutingMap

_APPROXIMATE = "approximate-experts"  # a folder, and needs the base


@click.command(epilog="Example: vmprune export plan --format llm-compressor --out report.json")
@click.argument("map_path", metavar="MAP", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice([*get_args(ExportFormat), _APPROXIMATE]),
    default="kept-ids",
    show_default=True,
    help="who is to read it",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="what to write")
@click.option("--model", type=click.Path(path_type=Path), help=f"base, for {_APPROXIMATE}: {NAMES}")
@click.option("--force", is_flag=True, help="replace OUT if it exists")
@click.option("--json", "as_json", is_flag=True, help="print JSON on stdout")
def export(
    map_path: Path, form: str, out: Path, model: Path | None, force: bool, as_json: bool
) -> None:
    """Write what a routing map does, for another tool.

    MAP is a routing map or a pruned checkpoint, here or on the hub (Org/Name[@revision]). kept-ids
    and llm-compressor are files that say which experts are kept: maps that merge experts, mix their
    scores or substitute some have no such form. approximate-experts is a checkpoint of a map that
    substitutes, which vLLM 0.33 serves by itself. All are described in docs/routing-map.md.
    """
    if (form == _APPROXIMATE) != (model is not None):
        raise PruneError(f"--model is for --format {_APPROXIMATE}, which needs it")
    call = None
    if model is not None:
        check_output(out, force=force, inputs=(map_path, model))
        routing_map = load_map(map_path)
        _write_checkpoint(routing_map, model, out, force=force)
    else:
        check_file(out, force=force, ours=is_export, inputs=(map_path,))
        routing_map = load_map(map_path)
        content = exported(routing_map, cast("ExportFormat", form))
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
    elif model is not None:
        click.echo(f"serve it (vLLM 0.33 or later): vllm serve {out}")


def _write_checkpoint(routing_map: RoutingMap, model: Path, out: Path, *, force: bool) -> None:
    from offline.build.approximate import write_approximate
    from offline.cli.progress import progress
    from offline.data.models import complete
    from vllm_moe_prune.checkpoint import Checkpoint

    base = Checkpoint.open(model_folder(model))
    complete(base.folder)
    with progress() as reporter:
        reporter.stage("writing the checkpoint", base.num_bytes)
        write_approximate(base, routing_map, out, force=force, progress=reporter.step)
