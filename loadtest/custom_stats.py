"""Statistics of tokens beside locust's own: on its page, in its CSV and its HTML report."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from html import escape
from pathlib import Path

from locust.env import Environment

from loadtest.centre import Centre
from loadtest.tally import COLUMNS, Tally
from vllm_moe_prune.reading import read_text

_KEY = "tokens"
_TITLES = dict(
    zip(COLUMNS, ("Metric", "Unit", "Values", "Mean", "p50", "p95", "p99", "Max"), strict=True)
)


def register(environment: Environment, centre_of: Callable[[], Centre | None]) -> None:
    """Add a tab to locust's page, if there is one."""
    if environment.web_ui is None:
        return
    from flask import Response, request

    page, app = environment.web_ui, environment.web_ui.app
    assert app is not None
    structure = [{"key": key, "title": title} for key, title in _TITLES.items()]
    page.template_args["extended_tabs"] = [{"title": "Tokens", "key": _KEY}]
    page.template_args["extended_tables"] = [{"key": _KEY, "structure": structure}]
    page.template_args["extended_csv_files"] = [
        {"href": "/tokens.csv", "title": "Download token statistics CSV"}
    ]

    @app.after_request
    def extend(response: Response) -> Response:
        centre = centre_of()
        if centre is None:
            return response
        if request.path == "/stats/requests" and response.is_json:
            rows = _rows(centre.tally)
            fields = {**response.get_json(), "extended_stats": [{"key": _KEY, "data": rows}]}
            response.set_data(json.dumps(fields))
        elif request.path == "/stats/report":
            response.set_data(with_section(response.get_data(as_text=True), centre))
        return response

    @app.route("/tokens.csv")
    def tokens_csv() -> Response:
        centre = centre_of()
        text = csv_text(centre.tally) if centre else ""
        return Response(text, mimetype="text/csv")


def _rows(tally: Tally) -> list[dict[str, str]]:
    facts = [{**dict.fromkeys(COLUMNS, ""), "metric": line} for line in tally.lines()]
    return tally.rows() + facts


def write(environment: Environment, centre: Centre) -> None:
    """At the end of a test: print the table, write ``PREFIX_tokens.csv``, complete the HTML."""
    options = environment.parsed_options
    assert options is not None
    for line in table(centre):
        print(line, file=sys.stderr)
    if options.csv_prefix:
        Path(f"{options.csv_prefix}_tokens.csv").write_text(csv_text(centre.tally))
    if options.html_file and Path(options.html_file).is_file():
        page = Path(options.html_file)
        page.write_text(with_section(read_text(page), centre), encoding="utf-8")


def table(centre: Centre) -> list[str]:
    """The statistics as lines of text."""
    rows = [_TITLES, *centre.tally.rows()]
    widths = [max(len(row[key]) for row in rows) for key in COLUMNS]
    lines = []
    for row in rows:
        cells = [
            row[key].ljust(width) if key in {"metric", "unit"} else row[key].rjust(width)
            for key, width in zip(COLUMNS, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return [*lines, *centre.tally.lines(), _client_line(centre)]


def _client_line(centre: Centre) -> str:
    health = centre.health()
    return (
        f"client: {health.processes} processes, {100 * health.cpu:.0f} % of a core, loop late by "
        f"{health.lag_ms_p95:.1f} ms (p95), {health.lag_ms_max:.0f} ms (most), "
        f"{100 * health.short_gaps:.1f} % of gaps below 1 ms"
    )


def csv_text(tally: Tally) -> str:
    """The rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writerow(_TITLES)
    writer.writerows(tally.rows())
    return text.getvalue()


def with_section(page: str, centre: Centre) -> str:
    """Locust's HTML report with the statistics of tokens at its end."""
    head = "".join(f"<th>{escape(title)}</th>" for title in _TITLES.values())
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(row[key])}</td>" for key in COLUMNS) + "</tr>"
        for row in centre.tally.rows()
    )
    facts = "".join(
        f"<li>{escape(line)}</li>" for line in [*centre.tally.lines(), _client_line(centre)]
    )
    section = (
        '<section style="font-family:sans-serif;margin:2em"><h2>Tokens</h2>'
        f'<table border="1" cellpadding="6" style="border-collapse:collapse"><tr>{head}</tr>{body}'
        f"</table><ul>{facts}</ul></section>"
    )
    before, mark, after = page.rpartition("</body>")
    return f"{before}{section}{mark}{after}" if mark else page + section
