"""How answers end, in words: rates of base and pruned model side by side, and what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from offline.report import words
from offline.report.tables import Table
from offline.results.check import ALL, MEASURES, TOLD_ONLY, AnswerCheck, Measure, Row, Share

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


def all_kinds(result: AnswerCheck) -> Table:
    """Rates and mean lengths of all answers together, one row for each measure and sampling."""
    rows = [row for s in result.samplings for m in MEASURES if (row := result.row(m, ALL, s))]
    return _table(result, "How answers end, all kinds together", rows, ALL)


def every_kind(result: AnswerCheck) -> Table:
    """Rates of both sides with their 95 % intervals, and the mean lengths, by kind."""
    return _table(result, "How answers end", result.rows, None)


def _table(result: AnswerCheck, caption: str, rows: Iterable[Row], kind: str | None) -> Table:
    found = [_cells(row) for row in rows]
    for one in result.lengths:
        if kind in (None, one.kind) or len(result.lengths) == len(result.samplings):
            ratio = f"x {one.ratio:.2f} ({one.low:.2f} to {one.high:.2f})"
            sides = (f"{value:.0f}" for value in (one.base, one.pruned))
            names = ("mean length, tokens", one.kind, one.sampling, "")
            found.append((*names, *sides, ratio, f"{one.n:,}"))
    head = ("share that, %", "answers", "sampling", "finding", "base", "pruned", "difference", "of")
    return Table(caption, head, tuple(found), frozenset({0, 1, 2, 3}))


def _cells(row: Row) -> tuple[str, ...]:
    change = row.difference
    told = ""
    if change is not None:
        told = f"{100 * change.value:+.1f} ({_span(change.low, change.high)})"
    base = "" if row.base is None else _rate(row.base)
    finding = "only told" if row.measure in TOLD_ONLY else row.finding
    names = (WORDS[row.measure], row.kind, row.sampling, finding)
    return (*names, base, _rate(row.pruned), told, f"{row.pruned.n:,}")


def key_figures(result: AnswerCheck) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and small print of what people report first: loops, open thinking."""
    names: dict[Measure, str] = {
        "loops": "Answers that loop",
        "thinking_open": "Thinking not closed",
    }
    for measure, name in names.items():
        row = result.row(measure)
        if row is not None:
            base = "" if row.base is None else f"base {words.percent(row.base.rate)}, "
            small = f"{base}{row.pruned.n} probes, {row.sampling}: {row.finding}"
            yield name, words.percent(row.pruned.rate), small


def sentences(result: AnswerCheck) -> Iterator[str]:
    """Yield what the rows say together; never that there is no collapse if few probes say so."""
    for kind, reason in result.skipped.items():
        yield f"{kind} were not asked: {reason}"
    deciding = [row for row in result.rows if row.measure not in TOLD_ONLY]
    if result.verdict == "worse":
        yield f"WORSE than the base: {worse(result)}"
    elif result.base is None:
        yield "no base to compare with: add --base"
    elif result.verdict == "no doubling":
        yield f"no rate doubled, and {result.probes} probes would have shown it (8 times in 10)"
    undecided = [row for row in deciding if row.finding == "undecided"]
    if undecided:
        yield f"undecided, {result.probes} probes cannot rule out a doubling: {_needs(undecided)}"


def worse(result: AnswerCheck) -> str:
    """Name what the pruned model does more often than its base; nothing if there is nothing."""
    more = [r for r in result.rows if r.finding == "more" and r.measure not in TOLD_ONLY]
    return _listed([_against(row) for row in more])


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
    return f"{100 * share.rate:.1f} ({_span(share.low, share.high)})"


def _span(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"
