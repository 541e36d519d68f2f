"""`vmprune check`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from offline.cli.models import NAMES, model_folder


@click.command(epilog="Example: vmprune check pruned --base base")
@click.argument("out", type=click.Path(path_type=Path, exists=False))
@click.option(
    "--base", type=click.Path(path_type=Path), help=f"base that OUT was made from: {NAMES}"
)
@click.option(
    "--dtype", default="auto", show_default=True, help="float32 gives the tightest parity"
)
@click.option("--json", "as_json", is_flag=True, help="print JSON on stdout")
def check(out: Path, base: Path | None, dtype: str, as_json: bool) -> None:
    """Serve OUT with vLLM and verify it: parity with the reference, and no collapse.

    OUT is a pruned checkpoint or a routing map. With --base the reference is the base with the
    dropped experts' scores removed. Ends with status 1 if a check fails.
    """
    if not out.is_dir():
        raise click.BadParameter(f"no such folder: {out}")
    base = base and model_folder(base)
    from offline.check.check import check as run_check
    from offline.check.check import check_free, save
    from offline.cli.progress import progress
    from offline.data.models import complete

    log = out.with_name(out.name + ".check.log")
    check_free(out, log)
    if base is not None:
        complete(base)
    with progress() as reporter:
        reporter.stage("serving with vLLM and comparing with transformers", 1)
        result = run_check(out, base, dtype=dtype, log=log)
        reporter.step()
    save(result, out)
    if as_json:
        click.echo(json.dumps(result.to_json()))
    else:
        for finding in result.checks:
            mark = "ok  " if finding.ok else "FAIL"
            numbers = f"{finding.value:.3g} (limit {finding.limit:.3g})"
            click.echo(f"{mark} {finding.name}: {numbers}; {finding.detail}")
    if not result.ok:
        sys.exit(1)
