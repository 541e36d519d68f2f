"""`vmprune sensitivity`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from offline.cli.engine_flags import check_engine, engine_options
from offline.cli.models import NAMES, model_folder
from offline.cli.options import Command, option_of
from offline.cli.quiet import QUIET_SETTINGS
from offline.cli.text_flags import LENGTH_SETTINGS
from offline.engines.opened import EngineName, Where
from offline.plan.recipe import PlanRecipe
from offline.runs.device import DType

if TYPE_CHECKING:
    from offline.results.sensitivity import Sensitivity

DOCUMENTS = 8


def _choice_options(command: Command) -> Command:
    fields = [option_of(name, PlanRecipe.model_fields[name]) for name in PlanRecipe.choosing()]
    group: Any = cloup.option_group("Which experts go first, as of vmprune plan", *fields)
    made: Command = group(command)
    return made


@cloup.command(
    epilog="""\b
Example:
  vmprune sensitivity --model base --scores scores --text code,stories --out sensitivity
  vmprune plan --scores scores --budget 120 --sensitivity sensitivity --out plan
""",
)
@cloup.option("--model", type=click.Path(path_type=Path), required=True, help=f"base: {NAMES}")
@cloup.option("--scores", type=click.Path(path_type=Path), required=True, help="scores of the base")
@cloup.option(
    "--text",
    metavar="SOURCE",
    required=True,
    help=f"text to read: [NAME=]SOURCE[:DOCUMENTS],... (docs/text.md), {DOCUMENTS} of each if not "
    "told; not what the plan is measured on afterwards",
)
@_choice_options
@cloup.option_group(
    "Measuring",
    cloup.option(
        "--levels",
        type=click.IntRange(min=1),
        default=4,
        show_default=True,
        help="numbers of experts with which each layer is measured, at most: as many passes over "
        "the text for each layer; a convex curve is fitted to them",
    ),
    cloup.option("--length", **LENGTH_SETTINGS),
    cloup.option(
        "--seed", type=int, default=0, show_default=True, help="of the order of documents"
    ),
)
@engine_options
@cloup.option_group(
    "Writing",
    cloup.option("--out", type=click.Path(path_type=Path), required=True, help="folder to write"),
    cloup.option("--force", is_flag=True, help="replace OUT if it exists"),
    cloup.option("--json", "as_json", is_flag=True, help="print the result as JSON on stdout"),
    cloup.option("-q", "--quiet", **QUIET_SETTINGS),
)
def sensitivity(
    model: Path,
    scores: Path,
    text: str,
    levels: int,
    length: int,
    seed: int,
    engine: EngineName,
    tensor_parallel: int,
    device: str,
    dtype: DType,
    out: Path,
    force: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Measure what a model loses when each layer alone keeps fewer experts.

    `vmprune plan --budget N --sensitivity OUT` then gives every layer as many experts as makes the
    sum of these losses least. The criterion and the other settings say which experts of a layer
    go first, and must be those of the plan.
    """
    from offline.runs.output import check_output, staged

    recipe = PlanRecipe.of({**flags, "ratio": 0.0})
    check_output(out, force=force, inputs=(model, scores))
    check_engine(engine, tensor_parallel, device)
    from offline.cli.progress import progress
    from offline.fitness.documents import TextAsked, parse_texts
    from offline.plan.sensitivity import SensitivityAsked, run_sensitivity

    asked = SensitivityAsked.of(
        model_folder(model),
        scores,
        recipe,
        TextAsked(parse_texts("--text", text, DOCUMENTS), length=length, seed=seed),
        levels,
        Where(engine, device, dtype, tensor_parallel),
    )
    with staged(out, force=force) as folder, progress() as reporter:
        found = run_sensitivity(asked, reporter)
        found.save(folder)
    if as_json:
        click.echo(found.model_dump_json())
    else:
        _show(found, out)


def _show(found: Sensitivity, out: Path) -> None:
    from rich.table import Table

    from offline.cli.console import stdout

    table = Table("layer", "experts", "loss more with so many of them, nats a token")
    for one in found.layers:
        losses = ", ".join(f"{count}: {loss:+.4f}" for count, loss in one.losses.items())
        table.add_row(str(one.layer), str(one.num_experts), losses)
    console = stdout()
    console.print(table)
    console.print(f"loss with all: {found.loss:.4f}, {found.tokens} tokens", soft_wrap=True)
    console.print(f"written to {out}", soft_wrap=True)
