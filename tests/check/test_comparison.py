"""Rows of two models' answers: rates, findings, and what is never said of too few."""

from __future__ import annotations

from typing import Any, cast

import pytest

from offline.check.answer import ProbeAnswer, read_answer
from offline.check.built_in import PER_KIND, built_in
from offline.check.comparison import Answers, compare
from offline.check.probe import Probe
from offline.check.rows import Counts, rows_of
from offline.results.check import KINDS, Measure, Row, Side
from tests.check.speaking import Fault, Speaker

TOKENS = 1024
# What any model does now and then: the base's own rates.
NATURAL: dict[Fault, float] = {
    "loops": 0.04,
    "thinks on": 0.1,
    "wrong call": 0.03,
    "wrong code": 0.05,
    "silence": 0.02,
}


def answers_of(speaker: Speaker, probes: tuple[Probe, ...]) -> dict[str, ProbeAnswer]:
    """Ask a speaker without HTTP."""
    found = {}
    for probe in probes:
        body = {**probe.body[1], "max_tokens": TOKENS, "return_token_ids": True}
        found[probe.digest] = read_answer(speaker.said(body))
    return found


def compared(
    base: dict[str, ProbeAnswer], pruned: dict[str, ProbeAnswer], probes: tuple[Probe, ...]
) -> tuple[Any, ...]:
    sides: dict[Side, dict[str, ProbeAnswer]] = {"base": base, "pruned": pruned}
    answers = {
        (side, "greedy", digest): answer
        for side, own in sides.items()
        for digest, answer in own.items()
    }
    return compare(cast(Answers, answers), probes, ("greedy",), has_base=True)


def row(rows: tuple[Row, ...], measure: Measure, kind: str) -> Row:
    return next(r for r in rows if (r.measure, r.kind) == (measure, kind))


def test_built_in_probes_differ_and_the_first_hold_all_kinds() -> None:
    probes = built_in(PER_KIND * len(KINDS))
    assert len(probes) == 10_000
    assert len({probe.digest for probe in probes}) == 10_000
    assert probes[:50] == built_in(50)
    assert {kind: sum(p.kind == kind for p in probes[:50]) for kind in KINDS} == dict.fromkeys(
        KINDS, 10
    )
    assert all("{" not in (p.prompt or p.messages[-1]["content"]) for p in probes)


def test_a_healthy_model_never_fails() -> None:
    """20 times: other answers with the same rates, as a base that is sampled twice gives."""
    probes = built_in(60)
    base = answers_of(Speaker(seed=20, faults=NATURAL), probes)
    for seed in range(20):
        again = answers_of(Speaker(seed=seed, faults=NATURAL), probes)
        rows, _, verdict = compared(base, again, probes)
        assert verdict == "undecided", seed  # 60 cannot say that nothing doubled
        assert not [r for r in rows if r.finding == "more"], seed


def test_the_same_answers_are_no_doubling_only_where_enough_were_asked() -> None:
    for size in (50, 300, 3000):
        same = [(str(n), n % 25 == 0, n % 25 == 0) for n in range(size)]
        (made,) = rows_of([Counts.of(("all", "greedy", "loops"), same)])
        assert made.finding == ("no doubling" if size == 3000 else "undecided")
        assert made.probes_needed is not None
        assert (made.probes_needed <= size) == (size == 3000)
        assert made.difference is not None and made.difference.value == 0


def test_a_base_that_never_fails_is_taken_for_one_percent() -> None:
    never = [(str(n), False, False) for n in range(400)]
    (made,) = rows_of([Counts.of(("all", "greedy", "loops"), never)])
    assert made.finding == "undecided"
    assert made.probes_needed is not None and 2000 < made.probes_needed < 4000


def test_a_base_that_always_fails_decides_nothing() -> None:
    always = [(str(n), True, True) for n in range(4000)]
    (made,) = rows_of([Counts.of(("chats", "greedy", "unfinished"), always)])
    assert (made.finding, made.probes_needed) == ("undecided", None)


def test_what_is_only_told_of_decides_nothing() -> None:
    """gpt-oss: an answer that is still empty because the model thinks is none of its failures."""
    probes = built_in(100)
    thinks = Speaker(faults={"unparsed thinking": 0.9})
    said = answers_of(thinks, probes)
    rows, _, verdict = compared(said, said, probes)
    found = row(rows, "empty_while_thinking", "thinking")
    assert found.pruned.count == len(thinks.wrongs["unparsed thinking"]) > 10
    assert row(rows, "empty", "all").pruned.count == 0
    assert verdict == "undecided"
    rows, _, verdict = compared(answers_of(Speaker(), probes), said, probes)
    assert row(rows, "empty_while_thinking", "thinking").finding == "undecided"
    assert row(rows, "thinking_open", "thinking").finding == "more"  # which the base closes
    assert verdict == "worse"


def test_many_rows_share_one_false_alarm() -> None:
    """A row that alone would be beyond chance is not among a hundred."""
    some = [(str(n), False, n < 8) for n in range(100)]  # by chance once in 256
    none = [(str(n), False, False) for n in range(100)]
    alone = Counts.of(("all", "greedy", "loops"), some)
    others = [Counts.of((f"kind {n}", "greedy", "loops"), none) for n in range(99)]
    assert rows_of([alone])[0].finding == "more"
    assert rows_of([alone, *others])[0].finding == "undecided"


def test_without_a_base_rates_are_told_and_nothing_is_decided() -> None:
    probes = built_in(20)
    speaker = Speaker(faults={"loops": 1.0})
    answers = {("pruned", "own", d): a for d, a in answers_of(speaker, probes).items()}
    rows, lengths, verdict = compare(cast(Answers, answers), probes, ("own",), has_base=False)
    assert (lengths, verdict) == ((), "undecided")
    assert {r.finding for r in rows} == {"no base"}
    assert row(rows, "loops", "prose").pruned.rate == 1.0


def test_lengths_are_compared_on_the_same_prompts() -> None:
    probes = built_in(100)
    loops = Speaker(faults={"loops": 1.0})
    _, lengths, _ = compared(answers_of(Speaker(), probes), answers_of(loops, probes), probes)
    prose = next(one for one in lengths if one.kind == "prose")
    assert prose.pruned == TOKENS
    assert prose.ratio == pytest.approx(TOKENS / prose.base)
    assert prose.low < prose.ratio < prose.high
    code = next(one for one in lengths if one.kind == "code")
    assert code.ratio == code.low == code.high == 1.0
