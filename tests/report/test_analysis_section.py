"""The report of a run shows how the experts are used, where the run had scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from offline.analysis.analyse import analyse
from offline.report.render import write_report
from offline.results.analysis import ANALYSIS_FILE
from tests.analysis.samples import map_keeping, scores_of, two_domains
from tests.report.page import Page
from tests.report.samples import run_result
from vllm_moe_prune.errors import PruneError


def test_the_analysis_beside_a_result_is_shown(tmp_path: Path) -> None:
    run_result(num_layers=3).save(tmp_path)
    bare = Page(write_report(tmp_path).read_text())
    assert not {"use", "balance", "overlap"} & set(bare.figures)
    assert "Use of the experts" not in bare.text
    kept = dict.fromkeys((0, 1, 4), (0, 2, 5))
    found = analyse(scores_of(two_domains()), routing_map=map_keeping(kept), criteria=["min-ean"])
    found.save(tmp_path)
    page = Page(write_report(tmp_path).read_text())
    assert page.open == []
    assert page.loads == []
    assert set(page.figures) - set(bare.figures) == {"use", "balance", "overlap"}
    shown = page.table("Use of the experts, base")
    assert shown.column("layer") == ["0", "1", "4"]
    assert shown.column("CV") == [f"{layer.cv:.2f}" for layer in found.layers]
    assert shown.column("tokens") == [f"{layer.tokens:,.0f}" for layer in found.layers]


def test_a_damaged_analysis_is_named(tmp_path: Path) -> None:
    run_result(num_layers=1).save(tmp_path)
    (tmp_path / ANALYSIS_FILE).write_text('{"schema_version": 1}')
    with pytest.raises(PruneError, match=r"analysis\.json"):
        write_report(tmp_path)
