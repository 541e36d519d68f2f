"""`vmprune build`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import click

from offline.build.mtp import MTP_HELP, MtpChoice
from offline.cli.findings import of_tensors, say
from offline.cli.models import NAMES, model_folder
from offline.cli.verify import with_verify


@click.command(epilog="Example: vmprune build --model base --map pruned.run --out pruned")
@click.option("--model", type=click.Path(path_type=Path), required=True, help=f"base: {NAMES}")
@click.option(
    "--map",
    "map_path",
    type=click.Path(path_type=Path),
    required=True,
    help=f"routing map: {NAMES}",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder to write")
@click.option("--force", is_flag=True, help="replace OUT if it exists")
@click.option("--dry-run", is_flag=True, help="say what would be written, and write nothing")
@click.option("--allow-other-base", is_flag=True, help="apply a map made for another base")
@with_verify
@click.option("--mtp", type=click.Choice(get_args(MtpChoice)), help=MTP_HELP)
@click.option("--json", "as_json", is_flag=True, help="print what is written as JSON on stdout")
@click.option(
    "--max-shard-gib",
    type=click.FloatRange(min=0, min_open=True, max=1024),
    default=4.0,
    show_default=True,
    help="size of a weight file",
)
def build(
    model: Path,
    map_path: Path,
    out: Path,
    force: bool,
    dry_run: bool,
    allow_other_base: bool,
    mtp: MtpChoice | None,
    as_json: bool,
    max_shard_gib: float,
) -> None:
    """Write the pruned checkpoint that a routing map describes."""
    from offline.runs.output import check_output, check_room

    if math.isnan(max_shard_gib):
        raise click.BadParameter("not a number", param_hint="--max-shard-gib")
    if not dry_run:
        check_output(out, force=force, inputs=(model, map_path))
    model = model_folder(model)
    from offline.build.build import build as run_build
    from offline.build.build import plan_build
    from offline.build.companions import left_behind
    from offline.build.mtp import notes
    from offline.build.whole import check_whole_base
    from offline.cli.progress import progress
    from offline.data.models import complete
    from offline.runs.units import gib
    from vllm_moe_prune.checkpoint import Checkpoint
    from vllm_moe_prune.repository import load_map

    routing_map = load_map(map_path)
    base = Checkpoint.open(model)
    check_whole_base(base)
    plan = plan_build(base, routing_map, allow_other=allow_other_base, mtp=mtp)
    for note in notes(base, mtp, routing_map):
        click.echo(f"note: {note}", err=True)
    found, behind = of_tensors(base, plan.operations), left_behind(base.folder)
    if as_json:
        facts = {"out": str(out), "written": not dry_run, "form": plan.form}
        facts |= {"summary": routing_map.summary(), "digest": routing_map.digest()}
        sizes = ("num_bytes", "base_bytes", "expert_bytes", "dropped", "merged")
        facts |= {name: getattr(plan, name) for name in sizes} | {"left_behind": behind}
        shown = json.dumps(facts | {"lint": [asdict(finding) for finding in found]})
    else:
        shown = (
            f"{routing_map.summary()}\n{gib(plan.num_bytes)} of {gib(plan.base_bytes)}: "
            f"{plan.dropped} tensors dropped, {plan.merged} merged"
        )
        if behind:
            shown += f"\nleft behind, as of the unpruned model: {', '.join(behind)}"
    say(found)
    if dry_run or not as_json:
        click.echo(shown)
    if dry_run:
        return
    check_room(out, plan.num_bytes)
    complete(base.folder)
    with progress() as reporter:
        reporter.stage("writing the checkpoint", plan.num_bytes)
        run_build(
            base,
            routing_map,
            out,
            force=force,
            allow_other=allow_other_base,
            mtp=mtp,
            max_shard_bytes=int(max_shard_gib * 1024**3),
            progress=reporter.step,
        )
    click.echo(shown if as_json else f"written to {out}")
