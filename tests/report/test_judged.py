"""The report says in its first lines whether the model is good enough, and what was lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from offline.report.judged import Judged, verdict_of
from offline.report.render import render
from offline.results.gates import GateResult
from tests.report.judgements import (
    FAILED,
    OPEN,
    PASSED,
    UNMEASURED,
    answer_check,
    gates,
    judged,
    text_quality,
)
from tests.report.page import Page
from tests.report.samples import run_result


@pytest.mark.parametrize(
    ("found", "state", "said"),
    [
        ((PASSED,), "pass", "Passes its gate."),
        ((PASSED, PASSED), "pass", "Passes all of 2 gates."),
        (
            (PASSED, FAILED, OPEN, UNMEASURED),
            "fail",
            "Fails 1 of 4 gates (1 passes, 2 undecided): perplexity ratio: worst "
            "1.31 (1.27 to 1.35), at most 1.15.",
        ),
        (
            (PASSED, PASSED, OPEN, UNMEASURED),
            "undecided",
            "Undecided: 2 of 4 gates (2 pass, none fails): agreement: code 0.86 (0.83 to 0.89), "
            "at least 0.85; loops: more (at most 0.02) was not measured.",
        ),
        (
            (FAILED,) * 5,
            "fail",
            "Fails 5 of 5 gates (0 pass, 0 undecided): "
            + "perplexity ratio: worst 1.31 (1.27 to 1.35), at most 1.15; " * 3
            + "and 2 more.",
        ),
    ],
)
def test_the_verdict_names_what_is_not_kept(
    found: tuple[GateResult, ...], state: str, said: str
) -> None:
    verdict = verdict_of(gates(*found))
    assert (verdict.state, f"{verdict.word} {verdict.said}") == (state, said)


def test_it_stands_above_everything_with_loops_and_thinking_beside_accuracy() -> None:
    page = Page(render(run_result(num_layers=2), judged=judged()))
    words = page.words
    assert words.index("Fails 1 of 4 gates") < words.index("Accuracy, EEP")
    assert words.index("Accuracy, EEP") < words.index("Answers that loop")
    assert words.index("Thinking not closed") < words.index("What was pruned")
    assert {"class": "verdict fail"} in page.named("p")
    table = page.table("Gates")
    assert table.column("verdict") == ["PASS", "FAIL", "UNDECIDED", "UNDECIDED"]
    assert page.table("Plain text, 95% intervals").row("code")["ratio"].startswith("1.183")
    short = page.table("How answers end, all kinds together")
    loops = short.row("loops", "all", "greedy")
    assert loops["base"].startswith("0.0 (") and loops["finding"] == "more"
    whole = page.table("How answers end")
    assert len(whole.body) > len(short.body) and "code" in whole.column("answers")
    assert "WORSE than the base: loops (all, greedy)" in words
    assert "Code were not asked: status 400: no such tool." in words


def test_without_gates_it_says_that_nobody_has_judged_it() -> None:
    page = Page(render(run_result(num_layers=1)))
    assert "Not judged: no gates were given that say what is good enough" in page.words
    assert "vmprune check pruned --base demo-moe-8x --no-parity --probes 400" in page.words
    worse = Page(render(run_result(num_layers=1), judged=Judged(answers=answer_check())))
    assert "Worse than the base: loops (all, greedy)" in worse.words
    assert "Not judged" not in worse.words


def test_what_lies_beside_a_checkpoint_is_shown(tmp_path: Path) -> None:
    assert Judged.beside(tmp_path) == Judged()
    for result in (gates(), text_quality(), answer_check(with_base=False)):
        result.save(tmp_path)
    assert Judged.beside(tmp_path) == Judged(gates(), answer_check(with_base=False), text_quality())
