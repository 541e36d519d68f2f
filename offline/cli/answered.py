"""What `vmprune check --probes` prints of answers: a table, and what it means in words."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from offline.results.check import TOLD_ONLY, AnswerCheck, Measure, Row, Share

WORDS: dict[Measure, str] = {
    "loops": "loops",
    "unfinished": "does not end",
    "thinking_open": "thinking is not closed",
    "empty_while_thinking": "still thinking, no answer yet",
    "empty": "says nothing",
    "tool_call_unparsed": "tool call does not parse",
    "no_tool_call": "no tool call",
    "code_unparsed": "code does not parse",
}
_SHOWN = 4  # rows that a sentence names


def table_of(result: AnswerCheck) -> Table:
    """Return rates of both sides with their 95 % intervals, and the mean lengths."""
    table = Table("answers", "sampling", "share that", "base", "pruned", "difference", "finding")
    for row in result.rows:
        change = row.difference
        told = ""
        if change is not None:
            told = f"{100 * change.value:+.1f} ({_span(change.low, change.high)})"
        base = "" if row.base is None else _rate(row.base)
        finding = "only told" if row.measure in TOLD_ONLY else row.finding
        words = WORDS[row.measure]
        table.add_row(row.kind, row.sampling, words, base, _rate(row.pruned), told, finding)
    for one in result.lengths:
        ratio = f"x {one.ratio:.2f} ({one.low:.2f} to {one.high:.2f})"
        base, pruned = (f"{value:.0f} tokens" for value in (one.base, one.pruned))
        table.add_row(one.kind, one.sampling, "mean length", base, pruned, ratio, "")
    return table


def sentences(result: AnswerCheck) -> Iterator[str]:
    """Yield what the rows say together; never that there is no collapse if few probes say so."""
    for kind, reason in result.skipped.items():
        yield f"{kind} were not asked: {reason}"
    deciding = [row for row in result.rows if row.measure not in TOLD_ONLY]
    if result.verdict == "worse":
        worse = [row for row in deciding if row.finding == "more"]
        yield f"WORSE than the base: {_listed([_against(row) for row in worse])}"
    elif result.base is None:
        yield "no base to compare with: add --base"
    elif result.verdict == "no doubling":
        yield f"no rate doubled, and {result.probes} probes would have shown it (8 times in 10)"
    undecided = [row for row in deciding if row.finding == "undecided"]
    if undecided:
        yield f"undecided, {result.probes} probes cannot rule out a doubling: {_needs(undecided)}"


def _needs(rows: list[Row]) -> str:
    named = []
    for row in rows:
        if row.probes_needed is None:
            why = "is so of all answers of the base"
        elif row.probes_needed > row.pruned.n:
            why = f"needs {row.probes_needed:,} of its probes, not {row.pruned.n:,}"
        else:
            why = "has an interval that reaches one"
        named.append(f"{_named(row)} {why}")
    return _listed(named)


def _listed(named: list[str]) -> str:
    more = len(named) - _SHOWN
    return "; ".join(named[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _against(row: Row) -> str:
    assert row.base is not None
    return f"{_named(row)} {_percent(row.pruned.rate)} against {_percent(row.base.rate)}"


def _named(row: Row) -> str:
    return f"{WORDS[row.measure]} ({row.kind}, {row.sampling})"


def _rate(share: Share) -> str:
    return f"{_percent(share.rate)} ({_span(share.low, share.high)}), {share.count} of {share.n}"


def _span(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"
