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

    With --keep N a search prunes and then merges; with all experts kept it only merges (tuning
    without gradients); --top-k 1 activates fewer experts. A run that was killed continues when the
    same command is given again.
    """
    from offline.cli.console import bars
    from offline.compress import compress as run_compress

    settings = CompressRecipe.merge(recipe, flags)
    with bars() as reporter:
        result = run_compress(settings, out, reporter=reporter, force=force)
    from offline.report.render import write_report

    report = write_report(out)
    if as_json:
        click.echo(result.model_dump_json())
    else:
        show(result, out, report)


def _cost(result: RunResult) -> str:
    """Say what the search cost, in one line."""
    points = result.search
    if not points:
        return "no search"
    seconds, dropped = sum(p.seconds for p in points), sum(not p.complete for p in points)
    return (
        f"search: {len(points)} candidates ({dropped} dropped by racing), "
        f"{sum(p.items for p in points):,} items, {sum(p.tokens for p in points):,} tokens, "
        f"{seconds:.0f} s, {seconds / len(points):.2f} s per candidate"
    )


def show(result: RunResult, out: Path, report: Path) -> None:
    """Print the table that a run ends with."""
    from rich.console import Console
    from rich.table import Table

    from offline.cli.console import gib

    table = Table(title="held-out items")
    for heading in ("", "task", "experts", "on disk", "accuracy", "95 % interval", "items"):
        table.add_column(heading, justify="left" if heading in ("", "task") else "right")
    for entry in (entry for entry in result.quality if entry.split == "test"):
        size = result.base_size if entry.variant == "base" else result.pruned_size
        name = entry.variant.replace("_", " ")
        table.add_row(
            f"{name} (mean of {entry.maps})" if entry.maps > 1 else name,
            entry.task if entry.measure == "accuracy" else f"{entry.task} ({entry.measure})",
            str(size.experts),
            gib(size.num_bytes),
            f"{entry.accuracy:.3f}",
            f"{entry.low:.3f} - {entry.high:.3f}",
            str(entry.items),
        )
    console = Console()
    console.print(table)
    console.print(_cost(result), soft_wrap=True)
    console.print(f"{result.summary}\nwritten to {out}, report in {report}", soft_wrap=True)
    flag = "" if result.form == "plain" else " --load-format pruned_moe"
    console.print(f"serve it: vllm serve {out}{flag}", soft_wrap=True)
