"""The page and the card of an output, drawn from the files beside its checkpoint."""

from __future__ import annotations

from pathlib import Path

from offline.report import recovery_page, render
from offline.report.card import write_card
from offline.results.recovery import RECOVERY_FILE


def draw(folder: Path, name: str | None = None) -> Path:
    """Draw the report of `vmprune compress` or `vmprune recover`, and what the card says of it.

    :param name: what the folder will be called, if it is still being made
    :returns: the page, ``folder/report.html``
    :raises PruneError: if there is no result, a file beside it is damaged, or another page is there
    """
    is_recovery = (folder / RECOVERY_FILE).is_file()
    page = recovery_page.write_page(folder) if is_recovery else render.write_report(folder)
    write_card(folder, name)
    return page


def redraw(folder: Path) -> None:
    """Draw the page again where there is one, as `draw`; the card in any case."""
    if (folder / render.REPORT_FILE).is_file():
        draw(folder)
    else:
        write_card(folder)
