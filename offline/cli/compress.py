"""`vmprune compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from offline.cli.options import options_of
from offline.recipe import CompressRecipe
from offline.result import RunResult


@click.command(
    epilog="Example: vmprune compress --model base --method eep --task sciq --keep 4 --out pruned"
)
@options_of(CompressRecipe)
@click.option("--recipe", type=click.Path(path_type=Path), help="YAML file with these settings")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder to write")
@click.option("--force", is_flag=True, help="replace OUT if it exists")
@click.option("--json", "as_json", is_flag=True, help="print the result as JSON on stdout")
def compress(recipe: Path | None, out: Path, force: bool, as_json: bool, **flags: Any) -> None:
    """Choose which experts to keep, by a task, and write the smaller checkpoint.

    A run that was killed continues when the same command is given again.
    """
    from offline.cli.console import bars
    from offline.compress import compress as run_compress
    from offline.compress import transformers_engine

    settings = CompressRecipe.merge(recipe, flags)
    with bars() as reporter:
        result = run_compress(
            settings, out, make_engine=transformers_engine, reporter=reporter, force=force
        )
    from offline.report.render import write_report

    report = write_report(out)
    if as_json:
        click.echo(result.model_dump_json())
    else:
        show(result, out, report)


def show(result: RunResult, out: Path, report: Path) -> None:
    """Print the table that a run ends with."""
    from rich.console import Console
    from rich.table import Table

    from offline.cli.console import gib

    held_out = [entry for entry in result.quality if entry.split == "test"]
    items = held_out[0].items
    table = Table(title=f"{result.task}, {items} held-out items")
    for heading in ("", "experts", "on disk", "accuracy", "95 % interval"):
        table.add_column(heading, justify="left" if not heading else "right")
    for entry in held_out:
        size = result.base_size if entry.variant == "base" else result.pruned_size
        name = f"{entry.variant} (mean of {entry.maps})" if entry.maps > 1 else entry.variant
        table.add_row(
            name,
            str(size.experts),
            gib(size.num_bytes),
            f"{entry.accuracy:.3f}",
            f"{entry.low:.3f} - {entry.high:.3f}",
        )
    console = Console()
    console.print(table)
    console.print(f"{result.summary}\nwritten to {out}, report in {report}", soft_wrap=True)
    flag = "" if result.form == "plain" else " --load-format pruned_moe"
    console.print(f"serve it: vllm serve {out}{flag}", soft_wrap=True)
