"""A comparison as rows for people: Markdown and a rich table."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from rich.table import Table

from loadtest.answers import Answers, proportion
from loadtest.ratios import disagree
from loadtest.results import BASE, PAGE_TITLE, CompareResult, Ratio, SideName

# Shown metric -> (its heading, unit of the value, digits).
SHOWN = {
    "output_tokens_per_second": ("output tokens/s", 1.0, 1),
    "ttft_ms_p50": ("prefill: time to first token, p50, ms", 1.0, 0),
    "ttft_ms_p95": ("prefill: time to first token, p95, ms", 1.0, 0),
    "prefill_tokens_per_second": ("prefill: prompt tokens/s of a request", 1.0, 0),
    "tpot_ms_p50": ("decode: time per output token, p50, ms", 1.0, 1),
    "tpot_ms_p95": ("decode: time per output token, p95, ms", 1.0, 1),
    "decode_tokens_per_second": ("decode: output tokens/s of a user", 1.0, 1),
    "itl_ms_p50": ("gap between chunks, p50, ms", 1.0, 1),
    "itl_ms_p95": ("gap between chunks, p95, ms", 1.0, 1),
    "e2e_ms_p50": ("end-to-end latency, p50, ms", 1.0, 0),
    "e2e_ms_p95": ("end-to-end latency, p95, ms", 1.0, 0),
    "output_tokens_mean": ("output tokens per answer", 1.0, 1),
    "joules_per_token": ("devices: energy per output token, J", 1.0, 3),
    "device_bytes": ("devices: memory in use, GiB", 2.0**30, 2),
}
_LIFETIME = {
    "startup_seconds": ("start-up, s", 1.0, 1),
    "peak_bytes": ("peak host memory, GiB", 2.0**30, 2),
    "natural_output_tokens": ("natural answer length, tokens", 1.0, 1),
}
HEADINGS = ("metric", "users", "base", "candidate", "ratio", "95% interval", "per round")


def rows(result: CompareResult, candidate: SideName | None = None) -> list[tuple[str, ...]]:
    """One row of strings per metric and number of users, in the order of ``HEADINGS``."""
    side = candidate or next(iter(result.candidates), "candidate")
    found: list[tuple[str, ...]] = []
    for users in result.settings.users:
        found += _failures(result, side, users)
        for metric, (heading, unit, digits) in SHOWN.items():
            ratio = result.ratio(metric, users, side)
            if ratio is not None:
                sizes = (result.value(s, metric, users) for s in (BASE, side))
                values = [_number(size and size / unit, digits) for size in sizes]
                found.append((heading, str(users), *values, *_ratio(ratio)))
        found += _servers(result, side, users)
    for metric, (heading, unit, digits) in _LIFETIME.items():
        ratio = result.ratio(metric, None, side)
        if ratio is not None:
            values = [_number(_median_of(result, s, metric, unit), digits) for s in (BASE, side)]
            found.append((heading, "", *values, *_ratio(ratio)))
    return [*found, *_answers(result, side)]


def _answers(result: CompareResult, side: SideName) -> Iterator[tuple[str, ...]]:
    """Rows of what was answered, beside how fast; the base's against its own of another round."""
    by = {found.side: found for found in result.answers}
    if BASE not in by or side not in by:
        return
    both = [by[BASE], by[side]]
    if both[1].compared:
        equal = (f"{one.equal} of {one.compared}" if one.compared else "-" for one in both)
        yield ("natural answers: the base's word for word", "", *equal, "", "", "")
        parts = (_number(one.alike and 100 * one.alike, 0) for one in both)
        yield ("natural answers: words before the first other one, %", "", *parts, "", "", "")
    if both[1].expected:
        yield ("natural answers: with what was expected", "", *map(_right, both), "", "", "")


def _right(answers: Answers) -> str:
    if not answers.expected:
        return "-"
    low, high = proportion(answers.right, answers.expected)
    return f"{answers.right} of {answers.expected} ({100 * low:.0f} - {100 * high:.0f} %)"


def _failures(result: CompareResult, side: SideName, users: int) -> Iterator[tuple[str, ...]]:
    """A row, if any request failed."""
    counts = [result.failed(one, users) for one in (BASE, side)]
    if any(failed for failed, _ in counts):
        values = (f"{failed} of {total}" for failed, total in counts)
        yield ("FAILED requests", str(users), *values, "", "", "")


# What a server said of itself -> (its heading, the unit of the value, digits).
_SERVER = {
    "running": ("server: most requests running", 1.0, 0),
    "waiting": ("server: most requests waiting", 1.0, 0),
    "kv_used": ("server: most of its KV cache, %", 0.01, 1),
    "kv_tokens": ("server: tokens that its KV cache has room for", 1.0, 0),
    "preemptions": ("server: preemptions", 1.0, 0),
    "queue_ms": ("server: a request waits, ms", 1.0, 1),
    "prefill_ms": ("server: a request is prefilled, ms", 1.0, 1),
    "decode_ms": ("server: a request is decoded, ms", 1.0, 1),
    "prefix_hit_share": ("server: prompt tokens found in its cache, %", 0.01, 1),
}


def _servers(result: CompareResult, side: SideName, users: int) -> Iterator[tuple[str, ...]]:
    """Rows of medians over the rounds, of what both servers tell."""
    for metric, (heading, unit, digits) in _SERVER.items():
        values = [result.told(one, metric, users) for one in (BASE, side)]
        if None not in values:
            shown = (_number(v and v / unit, digits) for v in values)
            yield (heading, str(users), *shown, "", "", "")


def _median_of(result: CompareResult, side: str, metric: str, unit: float) -> float | None:
    values = (getattr(life, metric) for life in result.lifetimes if life.side == side)
    known = [value / unit for value in values if value is not None]
    return median(known) if known else None


OPINION_HEADINGS = (
    *("metric", "users", "server", "locust", "vllm bench", "ratio", "95% interval", "per round"),
)
DISAGREE = "DISAGREE: "


def opinion_rows(result: CompareResult) -> list[tuple[str, ...]]:
    """What two load generators measured of each server, in the order of ``OPINION_HEADINGS``.

    The metric of a row in which they disagree begins with ``DISAGREE``.
    """
    found = []
    for ratio in result.second:
        heading, _, digits = SHOWN[ratio.metric]
        users, side = ratio.users or 0, ratio.candidate
        values = (
            _number(result.value(side, ratio.metric, users, second=second), digits)
            for second in (False, True)
        )
        said = f"{DISAGREE if disagree(ratio) else ''}{heading}"
        found.append((said, str(users), side, *values, *_ratio(ratio)))
    return found


def opinion(result: CompareResult) -> str:
    """Whether the two agree, in a line; empty if nobody was asked."""
    if not result.second:
        return ""
    apart = [ratio for ratio in result.second if disagree(ratio)]
    if not apart:
        return "vllm bench serve agrees with locust within the intervals"
    places = "; ".join(f"{SHOWN[r.metric][0]} ({r.candidate}, {r.users} users)" for r in apart)
    return f"vllm bench serve and locust disagree by more than their intervals: {places}"


def _ratio(ratio: Ratio) -> tuple[str, str, str]:
    ends = "" if ratio.low is None else f"{ratio.low:.2f} to {ratio.high:.2f}"
    return f"{ratio.median:.2f}", ends, " ".join(f"{value:.2f}" for value in ratio.per_round)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def length(result: CompareResult) -> str:
    """How long a measurement was."""
    settings = result.settings
    if settings.duration is not None and settings.requests is None:
        return f"{settings.duration:g} s"
    counts = ", ".join(str(settings.requests_at(users)) for users in settings.users)
    return f"{counts} requests"


def markdown(result: CompareResult) -> str:
    """The comparison as a Markdown page."""
    settings = result.settings
    lines = [
        PAGE_TITLE,
        "",
        f"* base: `{result.base}`",
        f"* candidate: `{result.candidate}`",
        *(f"* {side.name}: {_served(side.model_dump())}" for side in result.sides),
        f"* {result.created}, {settings.rounds} rounds, {length(result)} per measurement, "
        f"{settings.endpoint} endpoint, ignore_eos {'on' if settings.ignore_eos else 'off'}, "
        f"seed {settings.seed}, {result.errors} failed requests",
        f"* server arguments, all sides: `{' '.join(result.server_arguments) or '(none)'}`",
        *(f"* **{line}**" for line in result.verdict),
        *(f"* locust: {line}" for line in warnings(result)),
        "",
        "A ratio is candidate / base within one round; the column shows the median of the rounds.",
    ]
    for side in result.candidates:
        if len(result.candidates) > 1:
            lines += ["", f"## {side}"]
        lines += ["", f"| {' | '.join(HEADINGS)} |", "|---|---:|---:|---:|---:|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in rows(result, side)]
    if result.second:
        lines += ["", "## Second opinion", "", f"{opinion(result)}.", ""]
        lines += [f"| {' | '.join(OPINION_HEADINGS)} |", "|---|---:|---|---:|---:|---:|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in opinion_rows(result)]
    return "\n".join([*lines, ""])


def _served(side: dict[str, object]) -> str:
    shown = {k: v for k, v in side.items() if v not in (None, (), [], {}) and k != "name"}
    return ", ".join(f"{key} `{value}`" for key, value in shown.items())


def warnings(result: CompareResult) -> list[str]:
    """What locust complained of, each once."""
    return list(dict.fromkeys(line for life in result.lifetimes for line in life.warnings))


def rich_tables(result: CompareResult) -> list[Table]:
    """The comparison as tables for a terminal, one for each candidate."""
    names = {side.name: side.target for side in result.sides}
    tables = []
    for side in result.candidates:
        target = names.get(side, result.candidate)
        table = Table(title=f"{target} against {result.base}", caption="ratio > 1: more")
        for number, heading in enumerate(HEADINGS):
            table.add_column(heading, justify="left" if number in {0, 5, 6} else "right")
        for row in rows(result, side):
            table.add_row(*row)
        tables.append(table)
    if result.second:
        table = Table(title="Second opinion", caption=opinion(result))
        for number, heading in enumerate(OPINION_HEADINGS):
            table.add_column(heading, justify="left" if number in {0, 2, 6, 7} else "right")
        for row in opinion_rows(result):
            table.add_row(*row)
        tables.append(table)
    return tables
