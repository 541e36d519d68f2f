"""`python -m loadtest.report RECORDS|FOLDER`: loadtest.html, drawn from what was recorded."""

from __future__ import annotations

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # `python -m` looks first in the caller's folder, where a user may have a `serve.py`.
    sys.path.append(sys.path.pop(0))

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from loadtest import drawing
from loadtest.cli import one_line
from loadtest.metrics import Quantiles, Record, Summary, summarise
from loadtest.records import read_records
from loadtest.results import CompareResult, load_result, write_atomic
from loadtest.server_metrics import Sample, ServerUse, read_samples
from loadtest.table import (
    DISAGREE,
    HEADINGS,
    OPINION_HEADINGS,
    length,
    opinion,
    opinion_rows,
    rows,
    warnings,
)
from vllm_moe_prune.errors import PruneError

PAGE = "loadtest.html"


def write_records(records: Sequence[Path], out: Path) -> Path:
    """Draw one page of the records of one run or several, each with a name of its own.

    :raises PruneError: if a file is missing or no record
    """
    runs = {path.stem: _Drawn.read(path) for path in records}
    write_atomic(out, _page("Load test", runs, None))
    return out


def write_comparison(folder: Path) -> Path:
    """Draw the page of a comparison from its compare.json and the records of its rounds.

    Records that are gone are left out: the ratios are in compare.json.

    :raises PruneError: if there is no comparison in ``folder``
    """
    result = load_result(folder / "compare.json")
    runs = {}
    for life in result.lifetimes:
        for point in life.points:
            name = f"{life.round + 1}-{life.side}/users-{point.users}"
            file = folder / "rounds" / f"{name}.{result.settings.records}"
            if file.is_file():
                runs[name] = _Drawn.read(file)
    write_atomic(folder / PAGE, _page("Serving compared", runs, result))
    return folder / PAGE


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A run: its requests, and what the server said of itself meanwhile."""

    records: list[Record]
    samples: list[Sample]

    @classmethod
    def read(cls, file: Path) -> _Drawn:
        return cls(read_records(file), read_samples(file))

    def figures(self, name: str) -> Iterator[drawing.Figure]:
        if self.records:
            yield drawing.timeline(name, self.records)
        if self.samples:
            yield drawing.server(name, self.samples)

    def cells(self) -> list[str]:
        return [*_cells(summarise(self.records, 0)), *_server_cells(ServerUse.of(self.samples))]


def _page(title: str, runs: Mapping[str, _Drawn], result: CompareResult | None) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    figures = [] if result is None else drawing.ratio_figures(result)
    curves = drawing.curves({name: run.records for name, run in runs.items()})
    figures += [] if curves is None else [curves]
    figures += [figure for name, run in runs.items() for figure in run.figures(name)]
    return environment.get_template("report.html").render(
        title=title,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        result=result,
        length=length(result) if result else "",
        warnings=warnings(result) if result else [],
        tables={side: rows(result, side) for side in result.candidates} if result else {},
        ratio_headings=HEADINGS,
        opinion=opinion(result) if result else "",
        opinions=opinion_rows(result) if result else [],
        opinion_headings=OPINION_HEADINGS,
        disagree=DISAGREE,
        runs=[(name, run.cells()) for name, run in runs.items()],
        run_headings=_RUN_HEADINGS,
        figures=figures,
        plotly=Markup(get_plotlyjs()),
    )


_RUN_HEADINGS = (
    "run",
    "answered",
    "failed",
    "cut",
    "cancelled",
    "left late",
    "seconds",
    "requests/s",
    "output tokens/s",
    "tokens counted by",
    "TTFT p50/p95/p99, ms",
    "time per output token p50/p95/p99, ms",
    "gap between chunks p50/p95/p99, ms",
    "end to end p50/p95/p99, ms",
    "server: most running / waiting",
    "most of its KV cache",
    "preemptions",
    "prefix found",
)


def _cells(summary: Summary) -> list[str]:
    latencies = (summary.ttft_ms, summary.tpot_ms, summary.itl_ms, summary.e2e_ms)
    counts = (summary.requests, summary.errors, summary.cut, summary.cancelled, summary.late)
    source = {"usage": "the server", "both": "the server, in part", "chunks": "chunks", None: "-"}
    return [
        *map(str, counts),
        f"{summary.seconds:.1f}",
        f"{summary.requests_per_second:.2f}",
        f"{summary.output_tokens_per_second:.1f}",
        source[summary.tokens_from],
        *("-" if q is None else _percentiles(q) for q in latencies),
    ]


def _percentiles(found: Quantiles) -> str:
    """Three of them, with 95 % intervals where there are any."""

    def shown(value: float, ends: tuple[float, float] | None) -> str:
        return f"{value:.1f}" + (f" ({ends[0]:.1f} - {ends[1]:.1f})" if ends else "")

    parts = (shown(found.p50, found.p50_ends), shown(found.p95, found.p95_ends))
    return " / ".join([*parts, shown(found.p99 or 0, None)])


def _server_cells(use: ServerUse | None) -> list[str]:
    if use is None:
        return ["-"] * 4
    return [
        f"{_whole(use.running)} / {_whole(use.waiting)}",
        _percent(use.kv_used),
        _whole(use.preemptions),
        _percent(use.prefix_hit_share),
    ]


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


@click.command("report")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="where it is written")
def report_command(sources: tuple[Path, ...], out: Path | None) -> None:
    """Draw loadtest.html again: of the folder of a comparison, or of files of records."""

    def write() -> Path:
        if sources[0].is_dir():
            if len(sources) > 1 or out is not None:
                raise PruneError("a comparison is drawn alone, into its own folder")
            return write_comparison(sources[0])
        return write_records(sources, out or sources[0].with_name(PAGE))

    click.echo(f"written: {one_line(write)}")


if __name__ == "__main__":
    report_command()
