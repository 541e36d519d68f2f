"""A comparison as rows for people: Markdown and a rich table."""

from __future__ import annotations

from rich.table import Table

from loadtest.results import PAGE_TITLE, CompareResult, Lifetime, SideName

# Shown metric -> (its heading, digits).
_SHOWN = {
    "output_tokens_per_second": ("output tokens/s", 1),
    "ttft_ms_p50": ("time to first token, p50, ms", 0),
    "ttft_ms_p95": ("time to first token, p95, ms", 0),
    "itl_ms_p50": ("inter-token latency, p50, ms", 1),
    "itl_ms_p95": ("inter-token latency, p95, ms", 1),
    "e2e_ms_p50": ("end-to-end latency, p50, ms", 0),
    "e2e_ms_p95": ("end-to-end latency, p95, ms", 0),
    "output_tokens_mean": ("output tokens per answer", 1),
}
_HEADINGS = ("metric", "users", "base", "candidate", "ratio", "per round")


def rows(result: CompareResult) -> list[tuple[str, ...]]:
    """One row of strings per metric and number of users, in the order of ``_HEADINGS``."""
    found = []
    for users in result.settings.users:
        for metric, (heading, digits) in _SHOWN.items():
            ratio = result.ratio(metric, users)
            if ratio is None:
                continue
            sides: tuple[SideName, SideName] = ("base", "candidate")
            values = [_number(result.value(side, metric, users), digits) for side in sides]
            found.append((heading, str(users), *values, *_ratio(ratio.median, ratio.per_round)))
    return found + _lifetime_rows(result)


def _lifetime_rows(result: CompareResult) -> list[tuple[str, ...]]:
    shown = {
        "startup_seconds": ("start-up, s", 1.0, 1),
        "peak_bytes": ("peak host memory, GiB", 2.0**30, 2),
        "natural_output_tokens": ("natural answer length, tokens", 1.0, 1),
    }
    found = []
    for metric, (heading, unit, digits) in shown.items():
        ratio = result.ratio(metric)
        if ratio is None:
            continue
        values = [
            _number(_median_of(result, side, metric, unit), digits)
            for side in ("base", "candidate")
        ]
        found.append((heading, "", *values, *_ratio(ratio.median, ratio.per_round)))
    return found


def _median_of(result: CompareResult, side: str, metric: str, unit: float) -> float | None:
    lives: list[Lifetime] = [life for life in result.lifetimes if life.side == side]
    known = sorted(v / unit for life in lives if (v := getattr(life, metric)) is not None)
    return known[len(known) // 2] if known else None


def _ratio(middle: float, per_round: tuple[float, ...]) -> tuple[str, str]:
    return f"{middle:.2f}", " ".join(f"{value:.2f}" for value in per_round)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def markdown(result: CompareResult) -> str:
    """The comparison as a Markdown page."""
    settings = result.settings
    length = f"{settings.requests} requests" if settings.requests else f"{settings.duration:g} s"
    lines = [
        PAGE_TITLE,
        "",
        f"* base: `{result.base}`",
        f"* candidate: `{result.candidate}`",
        f"* {result.created}, {settings.rounds} rounds, {length} per measurement, "
        f"{settings.endpoint} endpoint, ignore_eos {'on' if settings.ignore_eos else 'off'}, "
        f"seed {settings.seed}, {result.errors} failed requests",
        f"* server arguments, both sides: `{' '.join(result.server_arguments) or '(none)'}`",
        "",
        "A ratio is candidate / base within one round; the column shows the median of the rounds.",
        "",
        f"| {' | '.join(_HEADINGS)} |",
        "|---|---:|---:|---:|---:|---|",
        *(f"| {' | '.join(row)} |" for row in rows(result)),
        "",
    ]
    return "\n".join(lines)


def rich_table(result: CompareResult) -> Table:
    """The comparison as a table for a terminal."""
    table = Table(title=f"{result.candidate} against {result.base}", caption="ratio > 1: more")
    for number, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="left" if number in {0, 5} else "right")
    for row in rows(result):
        table.add_row(*row)
    return table
