"""The model card says what was measured, to readers and to the hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from offline.build.card import model_card
from offline.report.card import markdown, with_measurements, write_card
from offline.report.pages import draw, redraw
from offline.report.tables import Table
from offline.runs.output import check_output
from offline.runs.owned import write_manifest
from tests.report.judgements import PASSED, answer_check, gates, text_quality
from tests.report.samples import run_result
from tests.results.test_recovery import FULL
from tests.sample_maps import uniform_map
from tests.vllm_moe_prune.bare import write_bare


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output with its card and a run's result."""
    write_bare(tmp_path / "base")
    card = model_card(
        "Org/base",
        uniform_map(tmp_path / "base", [(3, 0), (1, 2)]),
        "plain",
        {"license": "other", "language": ["no", "en"], "tags": ["1.0"]},
    )
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "README.md").write_text(card)
    run_result(num_layers=1).save(folder)
    write_manifest(folder)
    return folder


def test_it_has_the_table_and_the_index_of_the_hub(out: Path) -> None:
    write_card(out)
    text = (out / "README.md").read_text()
    data = read(text)
    assert data.model_name == "out"
    (found,) = _results(text)
    assert (found.dataset_name, found.metric_type, found.metric_value) == (
        "sciq",
        "accuracy",
        0.764,
    )
    assert found.metric_name == "accuracy (1000 items, 95% interval 0.7367 to 0.7893)"
    fields = data.to_dict()  # type: ignore[no-untyped-call]
    assert fields["model-index"][0]["results"][0]["dataset"] == {"name": "sciq", "type": "sciq"}
    assert (fields["license"], fields["language"]) == ("other", ["no", "en"])
    assert "1.0" in fields["tags"] and fields["base_model"] == "Org/base"
    assert "| EEP | sciq | 76.4% | 73.7 to 78.9% | -7.9 | 1000 | 1 |" in text
    order = ["experts pruned", "## What was measured", "Not judged", "## How to serve it"]
    assert sorted(map(text.index, order)) == list(map(text.index, order))


def test_later_measurements_take_the_place_of_earlier_ones(out: Path) -> None:
    write_card(out)
    for result in (gates(PASSED), text_quality(), answer_check()):
        result.save(out)
    write_card(out)
    text = (out / "README.md").read_text()
    assert text.count("## What was measured") == text.count("## How to serve it") == 1
    assert "**Passes** its gate." in text and "Not judged" not in text
    results = {(r.dataset_name, r.metric_type): r.metric_value for r in _results(text)}
    assert results["code", "perplexity"] == 15.5
    assert results["probes of vmprune check", "loops"] > 0.1
    assert ("probes of vmprune check", "empty_while_thinking") not in results
    assert with_measurements(text, out, "out") == text
    check_output(out, force=True)  # which it is still ours to replace


def test_a_card_of_somebodys_own_stays(out: Path) -> None:
    file = out / "README.md"
    file.write_text(file.read_text() + "\nMine.\n")
    before = file.read_bytes()
    draw(out)
    assert file.read_bytes() == before


def test_what_was_trained_and_not_pruned_has_its_bases_card(out: Path) -> None:
    own = "---\ntags: [moe]\n---\n# Base\n\n## Use\n"
    assert with_measurements(own, out, "out") == own


def test_a_recovered_model_has_what_the_finetune_left(tmp_path: Path) -> None:
    FULL.save(tmp_path)
    card = "---\ntags: [vllm-moe-prune]\n---\n# A model\n\n## How to serve it\n"
    made = with_measurements(card, tmp_path, "out")
    tuned = [cell for cell in FULL.cells if (cell.subject, cell.mode) == ("model", "sft")]
    assert [r.metric_value for r in _results(made)] == [cell.accuracy for cell in tuned]
    assert "| won back |" in made


def test_gates_that_come_later_are_on_page_and_card(out: Path) -> None:
    redraw(out)
    assert not (out / "report.html").exists()  # nobody has asked for one
    draw(out)
    gates().save(out)
    redraw(out)
    assert "Fails</strong> 1 of 4 gates" in (out / "report.html").read_text()
    assert "**Fails** 1 of 4 gates" in (out / "README.md").read_text()


def test_cells_are_cells_whatever_they_hold() -> None:
    table = Table("What", ("a", "b"), (("x|y\n<b>", "1"),), frozenset({0}))
    assert markdown(table) == "What:\n\n| a | b |\n| --- | ---: |\n| x\\|y &lt;b&gt; | 1 |"


def _results(text: str) -> list[EvalResult]:
    return read(text).eval_results or []


def read(text: str) -> ModelCardData:
    """Read a card as the hub does, its index too."""
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    return data
