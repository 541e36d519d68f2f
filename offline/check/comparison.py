"""Two models' answers to the same probes, side by side: rows, lengths, a verdict. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from offline.check.answer import ProbeAnswer
from offline.check.probe import Probe
from offline.check.rows import Counts, rows_of
from offline.check.traits import code_parses, loops, opens_before, thinking, tool_call
from offline.results.check import (
    ALL,
    MEASURES,
    TOLD_ONLY,
    Length,
    Measure,
    Row,
    Side,
    Verdict,
)

_OPENED = 0.1  # share of answers that close what they did not open, if the template opens it
_DRAWS = 1000
_OF_ONE_KIND: set[Measure] = {"tool_call_unparsed", "no_tool_call", "code_unparsed"}
_OF_THINKING: set[Measure] = {"thinking_open", "empty_while_thinking"}

#: side, way of sampling, digest of the probe -> answer
Answers = Mapping[tuple[Side, str, str], ProbeAnswer]
Unit = Literal["tokens", "words"]
_Seen = dict[Measure, bool]


@dataclass(frozen=True, slots=True)
class _Pair:
    """One probe and what was seen of its answers; ``base`` is None without a base."""

    probe: Probe
    base: _Seen | None
    pruned: _Seen
    tokens: tuple[int, int]


def unit_of(answers: Answers) -> Unit:
    """Return what loops are looked for in: words if any answer does not tell its tokens."""
    return "words" if any(a.token_ids is None for a in answers.values()) else "tokens"


def compare(
    answers: Answers, probes: Sequence[Probe], samplings: Sequence[str], *, has_base: bool
) -> tuple[tuple[Row, ...], tuple[Length, ...], Verdict]:
    """Return all rows, the lengths where there is a base, and what they say together.

    :param answers: of every probe and way of sampling, from both sides (or the pruned one alone)
    """
    unit = unit_of(answers)
    counts: list[Counts] = []
    lengths: list[Length] = []
    for sampling in samplings:
        for kind, pairs in _by_kind(_pairs(answers, probes, sampling, unit, has_base)):
            counts += _counts(kind, sampling, pairs)
            if has_base:
                lengths.append(_length(kind, sampling, pairs))
    rows = rows_of(counts)
    return rows, tuple(lengths), verdict_of(rows)


def verdict_of(rows: Iterable[Row]) -> Verdict:
    """Return what rows say together; what is only told of does not count."""
    found = {row.finding for row in rows if row.measure not in TOLD_ONLY}
    if "more" in found:
        return "worse"
    return "undecided" if found & {"undecided", "no base"} or not found else "no doubling"


def _pairs(
    answers: Answers, probes: Sequence[Probe], sampling: str, unit: Unit, has_base: bool
) -> list[_Pair]:
    judge: Side = "base" if has_base else "pruned"
    opened = {
        kind
        for kind in {probe.kind for probe in probes}
        if _share(
            opens_before(answers[judge, sampling, p.digest]) for p in probes if p.kind == kind
        )
        >= _OPENED
    }
    found = []
    for probe in probes:
        pruned = answers["pruned", sampling, probe.digest]
        base = answers["base", sampling, probe.digest] if has_base else pruned
        seen = [_seen(probe, one, unit, probe.kind in opened) for one in (base, pruned)]
        tokens = (base.tokens, pruned.tokens)
        found.append(_Pair(probe, seen[0] if has_base else None, seen[1], tokens))
    return found


def _seen(probe: Probe, answer: ProbeAnswer, unit: Unit, opened: bool) -> _Seen:
    units = answer.token_ids if unit == "tokens" and answer.token_ids else answer.words
    seen: _Seen = {
        "loops": loops(units),
        "empty": not (answer.text.strip() or answer.thought.strip() or answer.calls),
    }
    if probe.kind != "prose":  # which has no end of its own
        seen["unfinished"] = answer.cut
        state = thinking(answer, opened)
        seen["thinking_open"] = state == "open"
        is_empty = not answer.text.strip() and bool(answer.thought)
        seen["empty_while_thinking"] = state == "open" and is_empty and answer.cut
    if probe.kind == "tools":
        call = tool_call(answer, probe.tools)
        seen["tool_call_unparsed"] = call == "broken"
        seen["no_tool_call"] = call == "none"
    if probe.kind == "code":
        seen["code_unparsed"] = not code_parses(answer)
    return seen


def _by_kind(pairs: Sequence[_Pair]) -> Iterator[tuple[str, list[_Pair]]]:
    """Yield the pairs of all kinds together if there are several, and those of each."""
    kinds = dict.fromkeys(pair.probe.kind for pair in pairs)
    if len(kinds) > 1:
        yield ALL, list(pairs)
    for kind in kinds:
        yield kind, [pair for pair in pairs if pair.probe.kind == kind]


def _counts(kind: str, sampling: str, pairs: Sequence[_Pair]) -> Iterator[Counts]:
    """Yield what there is a row of: of what one kind has not twice, of thinking if any thinks."""
    for measure in MEASURES:
        seen = [
            (pair.probe.digest, None if pair.base is None else pair.base[measure], has)
            for pair in pairs
            if (has := pair.pruned.get(measure)) is not None
        ]
        if not seen or (kind == ALL and measure in _OF_ONE_KIND):
            continue
        if measure not in _OF_THINKING or any(base or pruned for _, base, pruned in seen):
            yield Counts.of((kind, sampling, measure), seen)


def _length(kind: str, sampling: str, pairs: Sequence[_Pair]) -> Length:
    """Compare mean lengths: the interval is the bootstrap's, over probes."""
    tokens = np.array([pair.tokens for pair in pairs], dtype=np.float64)  # [N, 2]
    base, pruned = tokens.mean(axis=0)
    drawn = np.random.default_rng(0).integers(len(pairs), size=(_DRAWS, len(pairs)))
    sums = tokens[drawn].sum(axis=1)  # [draws, 2]
    low, high = np.quantile(sums[:, 1] / np.maximum(sums[:, 0], 1.0), (0.025, 0.975))
    return Length(
        kind=kind,
        sampling=sampling,
        n=len(pairs),
        base=float(base),
        pruned=float(pruned),
        ratio=float(pruned / max(base, 1e-9)),
        low=float(low),
        high=float(high),
    )


def _share(found: Iterable[bool]) -> float:
    values = list(found)
    return sum(values) / len(values)
