"""`vmprune analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from offline.cli.models import NAMES
from vllm_moe_prune.errors import PruneError

if TYPE_CHECKING:
    from offline.results.analysis import Analysis

_EPILOG = """\b
Example:
  vmprune score --model base --out scores
  vmprune plan --scores scores --criterion min-ean --keep 4 --out plan
  vmprune analyze --scores scores --map plan --criteria min-ean,min-euf --out analysis
"""


@click.command(epilog=_EPILOG)
@click.option("--scores", type=click.Path(path_type=Path), required=True, help="scores of the base")
@click.option(
    "--after",
    type=click.Path(path_type=Path),
    help="scores of the pruned model on the same text: what pruning changed",
)
@click.option(
    "--map",
    "map_path",
    type=click.Path(path_type=Path),
    help=f"routing map, which says what is kept: {NAMES}",
)
@click.option(
    "--criteria",
    help="criteria to compare (min-ean,min-euf,...); all that the scores allow if not given",
)
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    help="experts per layer at which to compare them; the map's, else half, if not given",
)
@click.option(
    "--domains",
    help="weights of the scored domains (code:2,prose:1); all their tokens count the same if not "
    "given",
)
@click.option(
    "--layers",
    help="decoder layers whose co-activation is shown (0,7,15); first, middle and last if not "
    "given",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder to write")
@click.option("--force", is_flag=True, help="replace OUT if it exists")
@click.option("--json", "as_json", is_flag=True, help="print JSON on stdout")
def analyze(
    scores: Path,
    after: Path | None,
    map_path: Path | None,
    criteria: str | None,
    keep: int | None,
    domains: str | None,
    layers: str | None,
    out: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Show how a model's experts are used, and what criteria make of it.

    Writes OUT/analysis.json (docs/analysis.md says what the numbers mean) and OUT/analysis.html,
    one page that needs no network.
    """
    from offline.runs.output import check_output, staged

    check_output(out, force=force, inputs=(scores, after, map_path))
    from offline.analysis.analyse import analyse
    from offline.calibration.blend import parse_blend
    from offline.calibration.scores import Scores
    from vllm_moe_prune.provenance import Provenance, write_atomic
    from vllm_moe_prune.repository import load_map

    wanted = None if layers is None else _numbers(layers)
    words = None if criteria is None else _words(criteria)
    read = Scores.load(scores)
    given = {"scores": scores, "after": after, "map": map_path, "criteria": criteria, "keep": keep}
    given |= {"domains": domains, "layers": layers}
    found = analyse(
        read,
        domains=None if domains is None else parse_blend(domains),
        after=None if after is None else Scores.load(after),
        routing_map=None if map_path is None else load_map(map_path),
        criteria=words,
        keep=keep,
        layers=wanted,
        provenance=Provenance.now(
            "analyze",
            settings={
                name: value if isinstance(value, int) else str(value)
                for name, value in given.items()
                if value is not None
            },
            data=read.provenance.data,
        ),
    )
    with staged(out, force=force) as folder:
        from offline.report.analysis_page import ANALYSIS_PAGE, render

        found.save(folder)
        write_atomic(folder / ANALYSIS_PAGE, render(found))
    if as_json:
        click.echo(found.model_dump_json())
    else:
        _show(found, out)


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    wrong = next((part for part in parts if not part.isdecimal()), None)
    if wrong is not None:
        raise PruneError(f"--layers: {wrong!r} is not a layer", hint="for example --layers 0,7,15")
    return [int(part) for part in parts]


def _words(text: str) -> list[str]:
    words = [part.strip() for part in text.split(",")]
    if not all(words):
        raise PruneError(f"--criteria {text!r}: a name is missing", hint="min-ean,min-euf")
    return words


def _show(found: Analysis, out: Path) -> None:
    from rich.table import Table

    from offline.cli.console import stdout
    from offline.report.analysis_tables import USE_HEAD, use_row

    console = stdout()
    for name, layers in (("base", found.layers), ("pruned", found.after)):
        if not layers:
            continue
        table = Table(*USE_HEAD, title=name if found.after else None)
        for layer in layers:
            table.add_row(*use_row(layer))
        console.print(table)
    console.print(f"written to {out}: analysis.json, analysis.html", soft_wrap=True)
