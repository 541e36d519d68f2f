"""`vmprune import-eep`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from offline.cli.models import NAMES, model_folder


@click.command(
    "import-eep",
    epilog="Example: vmprune import-eep squad_budget_4.pth --model base --out squad-map",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help=f"base checkpoint: {NAMES}; the map is for Mixtral-8x7B as released if not given",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder to write")
@click.option("--force", is_flag=True, help="replace OUT if it exists")
@click.option("--json", "as_json", is_flag=True, help="print JSON on stdout")
def import_eep(file: Path, model: Path | None, out: Path, force: bool, as_json: bool) -> None:
    """Make a routing map from a coefficient file that the EEP authors released.

    FILE is a .pth with the matrices that their search found for Mixtral-8x7B. OUT can be built
    (`vmprune build`) or served with the base.
    """
    from offline.runs.output import check_output, staged

    check_output(out, force=force, inputs=(file, model))
    model = model and model_folder(model)
    from offline.methods.eep_released import (
        coefficients_map,
        mixtral_8x7b,
        read_coefficients,
        space_for,
    )
    from vllm_moe_prune.checkpoint import Checkpoint
    from vllm_moe_prune.hub import origin

    if model is None:
        released = read_coefficients(file)
        space, made_of = mixtral_8x7b(released.num_kept), {}
    else:
        base = Checkpoint.open(model)
        released = read_coefficients(file, num_layers=len(base.expert_counts()))
        space, made_of = space_for(released, base), origin(base.folder)
    routing_map = coefficients_map(released, space, made_of)
    with staged(out, force=force) as folder:
        routing_map.save(folder)
    if as_json:
        facts = {
            "out": str(out),
            "summary": routing_map.summary(),
            "digest": routing_map.digest(),
            "file": {"name": released.file, "sha256": released.sha256},
            "groups": len(released.groups),
        }
        click.echo(json.dumps(facts))
        return
    click.echo(routing_map.summary())
    click.echo(f"written to {out}")
    if model is None:
        click.echo("made without its base: `vmprune build` needs --allow-other-base")
