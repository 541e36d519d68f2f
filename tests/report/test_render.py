from __future__ import annotations

import json
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from offline.report.render import render, write_report
from offline.results.compression import RunResult
from tests.report.page import Page
from tests.report.samples import (
    check_json,
    compare_json,
    quality,
    run_result,
)
from vllm_moe_prune.errors import PruneError

HOSTILE = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>"


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


def test_several_tasks_are_told_apart() -> None:
    second = [q.model_copy(update={"task": "arc_easy", "accuracy": 0.5}) for q in quality()]
    page = Page(
        render(run_result(quality=(*quality(), *second), tasks=("sciq", "arc_easy"), task="both"))
    )
    names = page.figures["quality"]["layout"]["xaxis"]["ticktext"]
    assert names[:4] == ["base<br>sciq", "random<br>sciq", "frequency<br>sciq", "EEP<br>sciq"]
    assert names[4] == "base<br>arc_easy"
    held_out = page.table("Accuracy on the held-out split of both")
    assert held_out.row("EEP", "arc_easy")["accuracy"] == "50.0%"
    assert held_out.row("EEP", "arc_easy")["against base, points"] == "+0.0"
    assert held_out.row("EEP", "sciq")["against base, points"] == "-7.9"
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


def test_fields_that_are_missing_are_named() -> None:
    with pytest.raises(PruneError, match=r"serving\.json.*ratios"):
        render(run_result(num_layers=1), serving={"base": "a"})


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
