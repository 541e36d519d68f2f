"""`vmprune criteria`: nobody has to open a document to learn what a criterion is."""

from __future__ import annotations

import json

import pytest

from offline.criteria.registry import CRITERIA
from tests.command import invoke


def test_every_criterion_is_listed_with_meaning_formula_and_source() -> None:
    found = json.loads(invoke("criteria", "--json").output)
    assert [one["name"] for one in found] == list(CRITERIA)
    for one in found:
        assert all(one[key] for key in ("meaning", "formula", "source", "better", "group")), one
        assert "[E" not in one["meaning"], one
    reap = next(one for one in found if one["name"] == "reap")
    assert (reap["source"], reap["better"]) == ("REAP, arXiv 2510.13999", "min")
    assert [one["name"] for one in found if one["needs_gradients"]] == ["egs", "ege", "ego", "egn"]


def test_the_table_shows_brackets_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    output = invoke("criteria").output
    assert "A_p[:, j]" in output
    assert "min-ean" in output and "max-ecc" in output
