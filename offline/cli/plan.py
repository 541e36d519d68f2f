"""`vmprune plan`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from offline.cli.findings import say
from offline.cli.models import NAMES, model_folder
from offline.cli.options import options_of
from offline.plan.recipe import PlanRecipe
from vllm_moe_prune.errors import PruneError

if TYPE_CHECKING:
    from offline.calibration.scores import Scores
    from offline.plan.plan import Plan


@click.command(
    epilog="Example: vmprune plan --scores scores --criterion min-ean --keep 4 --out plan"
)
@click.option("--scores", type=click.Path(path_type=Path), required=True, help="scores to plan by")
@options_of(PlanRecipe)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="what is to be built from, where that is another checkpoint than was scored, such as its "
    f"quantised copy: {NAMES}; its incomplete experts go first, and its headers alone are read",
)
@click.option(
    "--sensitivity",
    type=click.Path(path_type=Path),
    help="with --budget: what `vmprune sensitivity` measured; each layer keeps as many experts as "
    "makes the sum of the layers' losses least",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder to write")
@click.option("--force", is_flag=True, help="replace OUT if it exists")
@click.option("--json", "as_json", is_flag=True, help="print JSON on stdout")
def plan(
    scores: Path,
    model: Path | None,
    sensitivity: Path | None,
    out: Path,
    force: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Choose experts by a criterion from saved scores, and write their routing map.

    Takes seconds and needs no model: plan as often as you like from one `vmprune score`. OUT can
    be built (`vmprune build --map OUT`) or served with the base. What serving will meet is said on
    stderr: --friendly avoids most of it.
    """
    from offline.runs.output import check_output, staged

    recipe = PlanRecipe.of(flags)
    check_output(out, force=force, inputs=[p for p in (scores, model, sensitivity) if p])
    from offline.calibration.scores import Scores, identity_of
    from offline.plan.plan import plan as run_plan
    from offline.results.sensitivity import Sensitivity

    read = Scores.load(scores)
    incomplete = (
        None if model is None else _incomplete(read, model, merges=recipe.merge is not None)
    )
    measured = None if sensitivity is None else Sensitivity.load(sensitivity)
    found = run_plan(read, recipe, identity_of(read, scores), incomplete, measured)
    with staged(out, force=force) as folder:
        found.routing_map.save(folder)
    _warn(found)
    if as_json:
        click.echo(json.dumps(_facts(found, recipe, out)))
    else:
        _show(found, out)


def _incomplete(scores: Scores, model: Path, *, merges: bool) -> dict[int, tuple[int, ...]]:
    """Return the experts of another checkpoint that lack a tensor.

    :param merges: experts are to be merged, for which they have to be alike
    """
    from offline.data.models import FACTS
    from offline.maps.moe_shape import incomplete_of
    from vllm_moe_prune.checkpoint import Checkpoint
    from vllm_moe_prune.completeness import check_all_alike, matrices_of

    checkpoint = Checkpoint.open(model_folder(model, FACTS))
    if checkpoint.expert_counts() != dict(scores.shape.num_experts):
        raise PruneError(
            f"--model: {model} has other layers or numbers of experts than what was scored",
            hint="a copy of the scored model, quantised or not",
        )
    if merges:
        check_all_alike(matrices_of(checkpoint.tensors, checkpoint.layout))
    return incomplete_of(checkpoint)


def _warn(found: Plan) -> None:
    """Name the experts that lack a tensor, and those that the text never reached."""
    for layer, experts in found.incomplete.items():
        click.echo(
            f"note: layer {layer}: expert {', '.join(map(str, experts))} lack tensors that others "
            "have, as of experts that a quantiser's calibration never reached; they go first",
            err=True,
        )
    for layer, experts in found.incomplete_kept.items():
        click.echo(
            f"warning: layer {layer} keeps expert {', '.join(map(str, experts))}, which a build "
            "refuses, as tensors are missing; keep fewer there",
            err=True,
        )
    for layer, experts in found.unseen.items():
        click.echo(
            f"warning: layer {layer}: no token reached expert {', '.join(map(str, experts))}",
            err=True,
        )
    if found.by_importance:
        click.echo(
            "warning: --budget goes by shares of importance, which were no better on average than "
            "the same number in each layer; --sensitivity goes by what layers lose "
            "(docs/sensitivity.md)",
            err=True,
        )
    for line in found.rounded:
        click.echo(f"note: {line}", err=True)
    say(found.findings)


def _facts(found: Plan, recipe: PlanRecipe, out: Path) -> dict[str, Any]:
    return {
        "out": str(out),
        "summary": found.routing_map.summary(),
        "digest": found.routing_map.digest(),
        "criterion": recipe.rule.word,
        "kept": {layer.layer: layer.experts.kept for layer in found.routing_map.layers},
        "unseen": found.unseen,
        "incomplete": found.incomplete,
        "protected": found.protected,
        "outliers": found.outliers,
        "rounded": found.rounded,
        "lint": [asdict(finding) for finding in found.findings],
    }


def _show(found: Plan, out: Path) -> None:
    from rich.table import Table

    from offline.cli.console import stdout
    from offline.plan.protection import named

    table = Table("layer", "experts", "top-k", "kept", "share of tokens")
    for layer in found.routing_map.layers:
        counts = found.evidence[layer.layer].seen.counts
        kept = list(layer.experts.kept or ())
        table.add_row(
            str(layer.layer),
            f"{layer.num_kept} of {layer.num_experts}",
            str(layer.top_k),
            ", ".join(map(str, kept)) if kept else "merged",
            f"{counts[kept].sum() / counts.sum():.0%}" if kept else "",
        )
    console = stdout()
    console.print(table)
    if found.outliers:
        console.print(f"super experts (layer:expert): {named(found.outliers)}", soft_wrap=True)
    console.print(found.routing_map.summary(), soft_wrap=True)
    console.print(f"written to {out}", soft_wrap=True)
