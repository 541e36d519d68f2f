"""A table of a page, for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as Printed

    from offline.report.tables import Table


def printed(table: Table) -> Printed:
    """Return a page's table with its caption as the title, for rich to print."""
    from rich.table import Table as Printed
    from rich.text import Text

    found = Printed(title=table.caption)
    for number, heading in enumerate(table.head):
        found.add_column(heading, justify="left" if number in table.text else "right")
    for row in table.rows:
        found.add_row(*map(Text, row))  # brackets are no markup here
    return found
