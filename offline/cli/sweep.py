"""`vmprune sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from offline.cli.engine_flags import check_engine, engine_options
from offline.cli.gated import GATE_SETTINGS
from offline.cli.models import NAMES, model_folder
from offline.cli.options import Command, option_of
from offline.cli.quiet import QUIET_SETTINGS
from offline.engines.opened import EngineName, Where
from offline.runs.device import DType
from offline.sweep.settings import (
    ChoiceSettings,
    MeasureSettings,
    SpeedSettings,
    SweepSettings,
)

if TYPE_CHECKING:
    from offline.results.sweep import SweepPoint, SweepResult
    from offline.sweep.start import Asked

_GROUPS = (
    ("Choices", ChoiceSettings),
    ("Measuring", MeasureSettings),
    ("Tokens per second", SpeedSettings),
)


def _setting_options(command: Command) -> Command:
    for title, model in reversed(_GROUPS):
        fields = [option_of(name, field) for name, field in model.model_fields.items()]
        group: Any = cloup.option_group(title, *list[Any](fields))
        command = group(command)
    return command


@cloup.command(
    epilog="""\b
Example:
  vmprune score --model base --out scores
  vmprune sweep --model base --scores scores --task sciq --gate gates.yaml --out sweep
""",
)
@cloup.option("--model", type=click.Path(path_type=Path), required=True, help=f"base: {NAMES}")
@cloup.option("--scores", type=click.Path(path_type=Path), required=True, help="scores of the base")
@cloup.option(
    "--task",
    required=True,
    help="what the choices are measured on: NAME[:METRIC][:WEIGHT],... as of compress",
)
@_setting_options
@engine_options
@cloup.option_group(
    "Writing",
    cloup.option("--gate", **GATE_SETTINGS),
    cloup.option("--out", type=click.Path(path_type=Path), required=True, help="folder to write"),
    cloup.option("--force", is_flag=True, help="replace OUT if it exists"),
    cloup.option("--dry-run", is_flag=True, help="say choices, sizes and cost; load no model"),
    cloup.option("--json", "as_json", is_flag=True, help="print the result as JSON on stdout"),
    cloup.option("-q", "--quiet", **QUIET_SETTINGS),
)
def sweep(
    model: Path,
    scores: Path,
    task: str,
    engine: EngineName,
    tensor_parallel: int,
    device: str,
    dtype: DType,
    gate: Path | None,
    out: Path,
    force: bool,
    dry_run: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Measure many choices from one scoring pass, and name the smallest that passes the gates.

    All combinations of criteria, ratios and the like race on search items; the best of each size
    are measured again on held-out items. OUT has sweep.html, sweep.json and the map of every
    choice, ready to build. A sweep that was killed continues when the same command is given again.
    """
    from offline.gates.gates import read_gates
    from offline.runs.resume import check_outputs

    settings = SweepSettings.of(flags)
    gates = None if gate is None else read_gates(gate)
    check_outputs(out, force=force, inputs=(scores, gate, *map(Path, settings.measured)))
    check_engine(engine, tensor_parallel, device)
    from offline.cli.progress import progress
    from offline.sweep.start import Asked, run_sweep

    where = Where(engine, device, dtype, tensor_parallel)
    asked = Asked.of(model_folder(model), scores, task, settings, gates, where)
    for name, why in asked.choices.skipped.items():
        click.echo(f"note: {name} is left out: {why}", err=True)
    if dry_run:
        _show_choices(asked, out)
        return
    with progress() as reporter:
        click.echo(asked.sweep(out, reporter).cost, err=True)
        result = run_sweep(
            asked, out, force=force, reporter=reporter, say=lambda line: click.echo(line, err=True)
        )
    if as_json:
        click.echo(result.model_dump_json())
    else:
        _show(result, out)
    if gates is not None and (code := exit_code(result)):
        raise SystemExit(code)


def exit_code(result: SweepResult) -> int:
    """Return 0 where a choice passes the gates, 3 where one might with more items, else 1."""
    if result.recommended is not None:
        return 0
    verdicts = {point.gates.verdict for point in result.points if point.gates is not None}
    return 1 if verdicts == {"fail"} else 3


def _show_choices(asked: Asked, out: Path) -> None:
    from rich.table import Table

    from offline.cli.console import stdout
    from offline.cli.progress import Silence
    from offline.runs.units import gib

    table = Table("choice", "experts", "active", "on disk")
    for one in asked.choices.found:
        table.add_row(one.name, str(one.experts), f"{one.active:g}", gib(one.num_bytes))
    console = stdout()
    console.print(table)
    console.print(asked.sweep(out, Silence()).cost, soft_wrap=True)


def _show(result: SweepResult, out: Path) -> None:
    from rich.table import Table

    from offline.cli.console import stdout
    from offline.runs.units import gib

    table = Table(title="held-out items")
    left, faster = ("choice", "gates"), any(point.speed for point in result.points)
    for heading in (
        *("choice", "experts", "active", "on disk", "accuracy", "95 % interval"),
        *(("tokens/s", "by the base's") if faster else ()),
        "gates",
    ):
        table.add_column(heading, justify="left" if heading in left else "right")
    base = str(result.base_experts), "", gib(result.base_bytes), *_accuracy(result.base_held_out)
    table.add_row("base", *base)
    for point in _again(result):
        assert point.held_out is not None
        mark = " *" if point.on_front else ""
        table.add_row(
            point.name + mark,
            str(point.experts),
            f"{point.active:g}",
            gib(point.num_bytes),
            *_accuracy(point.held_out),
            *(_speed(point) if faster else ()),
            "" if point.gates is None else point.gates.verdict,
        )
    console = stdout()
    console.print(table)
    console.print("* on the front: nothing as small is as good", soft_wrap=True)
    if (speed := next((point.speed for point in result.points if point.speed), None)) is not None:
        console.print(f"tokens/s: {speed.how}", soft_wrap=True)
    if result.left_open:
        names = ", ".join(result.left_open)
        console.print(f"not judged here: {names}: vmprune check --gate does", soft_wrap=True)
    if result.chosen is not None:
        console.print(f"the smallest that passes: {result.chosen.name}", soft_wrap=True)
        console.print(result.chosen.command, soft_wrap=True)
    console.print(f"written to {out}: sweep.html, sweep.json, maps", soft_wrap=True)


def _again(result: SweepResult) -> list[SweepPoint]:
    """Return what was measured on held-out items, the largest first."""
    found = [point for point in result.points if point.held_out is not None]
    return sorted(found, key=lambda point: (-point.num_bytes, -point.active, point.name))


def _speed(point: SweepPoint) -> tuple[str, str]:
    found = point.speed
    return ("", "") if found is None else (f"{found.tokens_per_second:,.1f}", str(found.ratio))


def _accuracy(found: Any) -> tuple[str, str]:
    interval = "" if found.low is None else f"{found.low:.3f} - {found.high:.3f}"
    return f"{found.value:.3f}", interval
