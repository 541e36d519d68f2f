"""The methods that are compared are commands that there are; tables and gaps of what was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.evidence import _report, _table
from benchmarks.evidence_methods import METHODS, SWEEP, Method
from benchmarks.evidence_runs import Found
from offline.cli.main import cli
from offline.results.estimate import Estimate
from tests.report.judgements import text_quality

TOLD = {
    **{"model": "my model", "scores": "s", "tasks": "a,b", "text": "t=t.jsonl:8", "ratio": "0.5"},
    **{"keep": 4, "total": 16, "floor": 2, "search_items": 20, "evaluations": 8, "seed": 1},
    **{"criteria": "ean,reap", "shared": "all of a seed"},
}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.name))
def test_every_word_is_one_that_vmprune_takes(method: Method) -> None:
    """Read, and not run: a flag that is not there any more is an error of click."""
    out, made = Path("some where/out"), []
    for words, folder in method.words(TOLD, out):
        name, command, rest = cli.resolve_command(cli.make_context("vmprune", ["x"]), words)
        assert command is not None and name == words[0]
        command.make_context(name, list(rest))
        made.append(folder)
    assert made[-1] == out and len(set(made)) == len(made)


def found(accuracy: float, name: str = "") -> Found:
    one = Estimate(value=accuracy, low=accuracy - 0.1, high=accuracy + 0.1)
    return Found(16, 2**24, {"arithmetic": one}, text_quality().domains[:1], name)


def test_the_gap_is_to_the_best_single_method_of_the_means_over_seeds() -> None:
    rows = {
        "min-ean": [found(0.5), found(0.7)],
        "random": [found(0.3), found(0.3)],
        SWEEP: [found(0.6, "a"), found(0.8, "b")],
    }
    report = _report({"0.5": rows})
    assert report["detail"]["0.5"]["best"] == "min-ean"
    assert report["value"] == pytest.approx(0.1)
    lines = _table("0.5", rows, found(0.9)).splitlines()
    assert lines[4].startswith("| base | 16 | 16.0 | 0.900 (0.800 - 1.000) | 1.183 |")
    assert lines[5].startswith(f"| {SWEEP} (a, b) | 16 | 16.0 | 0.700 (0.500 - 0.900) |")
    assert Found.from_json(found(0.5).to_json()) == found(0.5)
