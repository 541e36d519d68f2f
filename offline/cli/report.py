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

    The page of `compress` also shows OUT/serving.json (the compare.json of a load test) and
    OUT/check.json (what `vmprune check` found) where these files are there.
    """
    from offline.report.recovery_page import write_page
    from offline.report.render import write_report
    from offline.results.recovery import RECOVERY_FILE

    page = write_page(out) if (out / RECOVERY_FILE).is_file() else write_report(out)
    click.echo(f"{page} ({page.stat().st_size / 2**20:.1f} MiB, opens without a network)")
