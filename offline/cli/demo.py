"""`vmprune demo`: the embedded default model, and the whole job on it."""

from __future__ import annotations

from pathlib import Path

import click

from offline.cli.quiet import with_quiet


@click.group(epilog="Example: vmprune demo run --out demo")
def demo() -> None:
    """Make a small but real MoE from published packages, and try everything on it."""


@demo.command(epilog="Example: vmprune demo model --out base")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder to write")
@click.option("--force", is_flag=True, help="replace OUT if it exists")
def model(out: Path, force: bool) -> None:
    """Make the demo model: 8 experts per layer, top-2, 690M parameters, in about a minute."""
    from offline.runs.output import check_output

    check_output(out, force=force)
    from offline.cli.progress import progress
    from offline.demo.model import make_demo_model

    with progress() as reporter:
        make_demo_model(out, force=force, reporter=reporter)
    click.echo(f"written to {out}")


@demo.command(epilog="Example: vmprune demo run --out demo")
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
@click.option(
    "--users",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="concurrent users of the load test",
)
def run(out: Path, users: int) -> None:
    """Make the model, compress it with EEP, serve and load-test both, and judge it.

    It ends with a few gates, and well whatever they say; the report has all of it.
    What is already there from an earlier run is kept; a run that was killed continues.
    """
    from offline.cli.progress import progress
    from offline.demo.run import run_demo

    run_demo(out, users=users, progress=progress)


for _command in (model, run):
    with_quiet(_command)
