"""`vmprune report`: draw the report of a finished run again."""

from __future__ import annotations

from pathlib import Path

import click

_EPILOG = """\b
Example:
  python -m loadtest.compare --base BASE --candidate OUT --out OUT.serving
  cp OUT.serving/compare.json OUT/serving.json
  vmprune report OUT
"""


@click.command("report", epilog=_EPILOG)
@click.argument("out", type=click.Path(exists=True, file_okay=False, path_type=Path))
def report(out: Path) -> None:
    """Draw OUT/report.html from the result of `vmprune compress` or `vmprune recover`.

    Both also show what gates said and how answers end; that of `compress` OUT/serving.json (the
    compare.json of a load test) and OUT/check.json (what `vmprune check` found) as well. The same
    figures go into the model card, OUT/README.md, unless it was edited.
    """
    from offline.report.pages import draw

    page = draw(out)
    click.echo(f"{page} ({page.stat().st_size / 2**20:.1f} MiB, opens without a network)")
