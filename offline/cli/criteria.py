"""`vmprune criteria`."""

from __future__ import annotations

import json
from typing import Any

import click


@click.command(epilog="Example: vmprune criteria")
@click.option("--json", "as_json", is_flag=True, help="print JSON on stdout")
def criteria(as_json: bool) -> None:
    """List the criteria: what each says of an expert, its formula and its source.

    A criterion is given as min-NAME (drops the experts with the lowest values first), max-NAME (the
    highest first), or as a bare NAME, which takes the better end.
    """
    from offline.criteria.registry import CRITERIA

    found = [
        {
            "name": name,
            "meaning": criterion.meaning,
            "formula": criterion.formula,
            "better": criterion.better,
            "group": criterion.group,
            "source": criterion.source,
            "grounds": criterion.grounds,
            "needs_gradients": criterion.needs_gradients,
        }
        for name, criterion in CRITERIA.items()
    ]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _show(found)


def _show(found: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("name", "meaning", "formula", "dropped first", "source", show_lines=True)
    for one in found:
        better = f"{one['better']}-{one['name']}"
        source = one["source"] + ("" if one["grounds"] == "paper" else "; which end: our reading")
        cells = (one["name"], one["meaning"], one["formula"], better, source)
        table.add_row(*map(escape, cells))
    console = Console()
    console.print(table)
    console.print(
        "W_p: weights of expert p, W_p^g their gradients; A_p: its outputs, [tokens, hidden]; "
        "T_p: tokens routed to it; g_t: its routing weight for token t. Criteria of gradients need "
        "scores made with `vmprune score --gradients`.",
        markup=False,
    )
