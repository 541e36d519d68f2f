from __future__ import annotations

import json
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from offline.report import tables, words
from offline.report.inputs import Ratio
from offline.report.render import render, write_report
from offline.results.compression import LayerOutcome, RunResult
from tests.report.page import Page
from tests.report.samples import (
    check_json,
    compare_json,
    provenance,
    quality,
    run_result,
)
from vllm_moe_prune.errors import PruneError

HOSTILE = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>"


@pytest.fixture(scope="module")
def full() -> Page:
    return Page(render(run_result(), serving=compare_json(), check=check_json()))


@pytest.fixture(scope="module")
def bare() -> Page:
    measured = tuple(q for q in quality() if q.variant in {"base", "frequency"})
    return Page(render(run_result(num_layers=2, method="frequency", search=(), quality=measured)))


def test_page_is_balanced_and_has_the_parts_of_a_page(full: Page) -> None:
    assert full.open == []
    assert full.named("html") == [{"lang": "en"}]
    assert len(full.named("h1")) == 1
    assert len(full.named("title")) == 1
    assert len(full.named("table")) == len(full.named("caption"))
    assert {a["role"] for a in full.named("div") if "plot" in str(a.get("class"))} == {"img"}


def test_page_loads_nothing_and_forbids_it(full: Page) -> None:
    assert full.loads == []
    assert not any("@import" in style or "url(" in style for style in full.styles)
    policy = [a["content"] for a in full.named("meta") if a.get("http-equiv")]
    assert policy[0] is not None
    assert policy[0].startswith("default-src 'none'")


def test_plotly_is_there_once(full: Page) -> None:
    assert sum("plotly.js v" in script for script in full.scripts) == 1
    assert "</script" not in get_plotlyjs()


def test_outcome_is_one_sentence_with_the_main_figures(full: Page) -> None:
    assert (
        "Keeping 120 of 240 experts takes demo-moe-8x from 1.35 GiB to 0.75 GiB (-44.1%); "
        "accuracy on 1000 held-out items of sciq goes from 84.3% to 76.4%; it serves 1.21 times "
        "the output tokens per second at 8 users."
    ) in full.words


def test_every_accuracy_is_shown_with_its_interval(full: Page) -> None:
    for q in quality():
        assert words.percent(q.accuracy) in full.cells
        assert words.interval(q.low, q.high) in full.cells
    for difference in ("-17.4", "-11.2", "-7.9", "-4.0", "-2.1"):
        assert difference in full.cells
    assert "The search's own figure is 6.1 points above" in full.words


def test_sizes_are_shown_to_the_byte(full: Page) -> None:
    size = run_result().pruned_size
    assert f"{size.num_bytes:,}" in full.cells
    assert f"{size.expert_bytes:,}" in full.cells


def test_every_layer_is_in_the_table(full: Page) -> None:
    for layer in run_result().layers:
        assert words.ids(layer.kept) in full.cells
        share = tables.kept_share([layer])
        assert share is not None
        assert words.percent(share) in full.cells


def test_every_serving_ratio_is_shown(full: Page) -> None:
    for ratio in compare_json()["ratios"]:
        assert f"{ratio['median']:.2f}" in full.cells
        assert " ".join(f"{value:.2f}" for value in ratio["per_round"]) in full.cells
    assert "peak host memory, GiB" in full.cells
    assert "3.25" in full.cells


def test_checks_are_shown(full: Page) -> None:
    assert "All checks passed." in full.words
    assert {"log-probability parity", "0.000613", "0.002", "passed"} <= set(full.cells)


def test_provenance_is_shown(full: Page) -> None:
    made = provenance()
    assert {*made.settings, *made.versions, *made.versions.values()} <= set(full.cells)
    assert {d.sha256 for d in made.data} <= set(full.cells)
    assert run_result().map_digest in full.words
    assert made.created in full.words


def test_commands_repeat_the_run(full: Page) -> None:
    assert "vllm serve pruned --load-format pruned_moe" in full.words
    assert (
        "vmprune compress --model demo-moe-8x --method eep --task sciq --keep 4 "
        "--evaluations 100 --initial 30 --groups 4"
    ) in full.words
    assert "--top-k" not in full.words  # not set in this run
    assert "--seed 7 --out pruned" in full.words


def test_heat_map_crosses_out_what_is_dropped(full: Page) -> None:
    heat, crosses = full.figures["heat-map"]["data"]
    layers = run_result().layers
    cells = set(zip(crosses["x"], crosses["y"], strict=True))
    assert cells == {(layer.layer, e) for layer in layers for e in range(8) if e not in layer.kept}
    assert heat["z"][3][5] == pytest.approx(100 * layers[5].usage[3] / sum(layers[5].usage))


def test_search_progress_has_every_candidate_and_the_baselines(full: Page) -> None:
    candidates, dropped, best, *lines = full.figures["search-progress"]["data"]
    points = run_result().search
    assert candidates["y"] == pytest.approx([100 * p.fitness for p in points if p.complete])
    assert dropped["x"] == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    assert dropped["customdata"] == [25] * 10
    (switch,) = full.figures["search-progress"]["layout"]["annotations"]
    assert (switch["text"], switch["x"]) == ("merging begins", 50.5)
    assert best["y"] == pytest.approx([100 * p.best for p in points])
    names = " ".join(line["name"] for line in lines)
    assert "mean of the 30 random starts" in names
    assert "frequency, held-out 73.1%" in names


def test_what_the_search_cost_is_added_up_by_phase(full: Page) -> None:
    at = full.cells.index("merge", full.cells.index("dropped by racing"))
    points = [p for p in run_result().search if p.phase == "merge"]
    assert full.cells[at : at + 7] == [
        "merge",
        "50",
        "5",
        f"{45 * 200 + 5 * 25:,}",
        f"{50 * 12345:,}",
        f"{sum(p.seconds for p in points):.1f}",
        "4.25",
    ]


def test_several_tasks_are_told_apart() -> None:
    second = [q.model_copy(update={"task": "arc_easy", "accuracy": 0.5}) for q in quality()]
    page = Page(
        render(run_result(quality=(*quality(), *second), tasks=("sciq", "arc_easy"), task="both"))
    )
    names = page.figures["quality"]["layout"]["xaxis"]["ticktext"]
    assert names[:4] == ["base<br>sciq", "random<br>sciq", "frequency<br>sciq", "EEP<br>sciq"]
    assert names[4] == "base<br>arc_easy"
    assert page.cells.count("arc_easy") == 4 + 3


def test_quality_bars_have_the_intervals(full: Page) -> None:
    bar = next(b for b in full.figures["quality"]["data"] if b.get("name") == "EEP")
    assert bar["error_y"]["array"] == pytest.approx([100 * (0.7893 - 0.764)])
    assert bar["error_y"]["arrayminus"] == pytest.approx([100 * (0.764 - 0.7367)])


def test_without_load_test_and_checks_the_page_says_how_to_get_them(bare: Page) -> None:
    assert "serving" not in bare.figures
    assert "python -m loadtest.compare --base demo-moe-8x --candidate pruned" in bare.words
    assert "vmprune check pruned --base demo-moe-8x" in bare.words
    assert "The method frequency evaluates no candidates." in bare.words


def test_without_any_quality_the_page_says_so() -> None:
    page = Page(render(run_result(num_layers=1, quality=())))
    assert "Accuracy on held-out items was not measured." in page.words


def test_layers_may_differ_and_may_be_merged() -> None:
    layers = (
        LayerOutcome(
            layer=1,
            num_experts=4,
            num_kept=2,
            kept=(0, 3),
            top_k=1,
            router="mapped",
            usage=(0,) * 4,
        ),
        LayerOutcome(
            layer=5, num_experts=2, num_kept=1, kept=(), top_k=2, router="mapped", usage=(3, 1)
        ),
    )
    page = Page(render(run_result(layers=layers)))
    heat, crosses = page.figures["heat-map"]["data"]
    assert list(zip(crosses["x"], crosses["y"], strict=True)) == [(0, 1), (0, 2)]
    assert [row[1] for row in heat["z"]] == [75.0, 25.0, None, None]
    assert {"merged", "1 of 2"} <= set(page.cells)
    assert page.figures["heat-map"]["layout"]["xaxis"]["ticktext"] == ["1", "5"]


def test_hostile_names_are_text_and_nothing_else() -> None:
    serving, check = compare_json((1,)), check_json()
    serving["server_arguments"] = [HOSTILE]
    serving["ratios"].append({**serving["ratios"][0], "metric": HOSTILE})
    check["checks"][0] |= {"name": HOSTILE, "detail": HOSTILE}
    result = run_result(
        num_layers=1, model=HOSTILE, out=HOSTILE, task=HOSTILE, summary=HOSTILE, map_digest=HOSTILE
    )
    page = Page(render(result, serving=serving, check=check))
    assert page.open == []
    assert page.loads == []
    assert not any("onerror" in a for _, a in page.tags)
    assert HOSTILE in page.text
    assert not any("alert" in script for script in page.scripts[-2:])


def test_a_failed_check_is_said_loudly() -> None:
    page = Page(render(run_result(num_layers=1), check={"checks": [{"name": "x", "ok": False}]}))
    assert "NOT all checks passed." in page.words
    assert "FAILED" in page.cells


def test_unknown_fields_of_other_tools_are_ignored() -> None:
    serving = {**compare_json(), "schema_version": 9, "news": 1}
    measure = {"name": "parity", "ok": True, "measure": 0.25, "extra": []}
    page = Page(render(run_result(num_layers=1), serving=serving, check={"checks": [measure]}))
    assert "0.25" in page.cells


def test_fields_that_are_missing_are_named() -> None:
    with pytest.raises(PruneError, match=r"serving\.json.*ratios"):
        render(run_result(num_layers=1), serving={"base": "a"})


@pytest.mark.parametrize(
    ("rounds", "higher_is_better", "expected"),
    [
        ((1.2, 1.3), True, "better"),
        ((1.2, 1.3), False, "worse"),
        ((0.9, 0.8), False, "better"),
        ((0.9, 1.1), True, "unclear"),
        ((1.0, 1.1), True, "unclear"),
        ((1.2, 1.3), None, ""),
        ((), True, "better"),
    ],
)
def test_rounds_that_disagree_prove_nothing(
    rounds: tuple[float, ...], higher_is_better: bool | None, expected: str
) -> None:
    ratio = Ratio(metric="m", per_round=rounds, median=1.1, higher_is_better=higher_is_better)
    assert tables.verdict(ratio) == expected


def test_ids_are_written_as_runs() -> None:
    assert words.ids((0, 2, 3, 4, 5, 7, 8)) == "0, 2-5, 7, 8"
    assert words.ids(()) == ""


def test_write_report_reads_what_lies_beside_the_result(tmp_path: Path) -> None:
    result: RunResult = run_result(num_layers=2)
    result.save(tmp_path)
    (tmp_path / "serving.json").write_text(json.dumps(compare_json()))
    (tmp_path / "check.json").write_text(json.dumps(check_json()))
    page = write_report(tmp_path)
    assert page == tmp_path / "report.html"
    assert page.read_text() == render(result, serving=compare_json(), check=check_json())
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("content", ["{", "[1]", "\x00"])
def test_a_damaged_file_is_named_and_the_old_report_stays(tmp_path: Path, content: str) -> None:
    run_result(num_layers=1).save(tmp_path)
    (tmp_path / "report.html").write_text("old")
    (tmp_path / "serving.json").write_text(content)
    with pytest.raises(PruneError, match=r"serving\.json is not"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"
