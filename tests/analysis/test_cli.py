"""`vmprune analyze`: files, page and one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from offline.analysis.analyse import analyse
from offline.cli.analyze import analyze
from offline.report.analysis_page import render
from offline.results.analysis import Analysis
from tests.analysis.samples import map_keeping, masked, scores_of, two_domains
from tests.report.page import Page
from vllm_moe_prune.errors import PruneError

KEPT = {0: (0, 1, 4), 1: (1, 2, 3), 4: (0, 3, 5)}
HOSTILE = "</script><img src=x onerror='alert(2)'>"
TOKENS = two_domains(never=(5,))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analyze")
    after = {
        name: {n: masked(part, KEPT[n]) for n, part in layers.items()}
        for name, layers in TOKENS.items()
    }
    for name, scores in (("scores", scores_of(TOKENS)), ("after", scores_of(after))):
        (folder / name).mkdir()
        scores.save(folder / name)
    (folder / "map").mkdir()
    map_keeping(KEPT).save(folder / "map")
    return folder


def run(inputs: Path, out: Path, *words: str) -> Result:
    return CliRunner().invoke(
        analyze, ["--scores", str(inputs / "scores"), "--out", str(out), *words]
    )


@pytest.fixture(scope="module")
def full(inputs: Path) -> tuple[Result, Path]:
    out = inputs / "full"
    more = ["--after", str(inputs / "after"), "--map", str(inputs / "map")]
    return run(inputs, out, *more, "--criteria", "min-ean,max-rwn,ecc", "--layers", "1"), out


def test_numbers_and_page_are_written(full: tuple[Result, Path]) -> None:
    done, out = full
    assert done.exit_code == 0, done.exception
    assert sorted(file.name for file in out.iterdir()) == [
        ".vmprune.json",
        "analysis.html",
        "analysis.json",
    ]
    found = Analysis.load(out)
    assert [change.word for change in found.changes] == ["min-ean", "max-rwn", "max-ecc"]
    assert [matrix.layer for matrix in found.co_activation] == [1]
    assert found.provenance.settings["criteria"] == "min-ean,max-rwn,ecc"
    table = [line for line in done.output.splitlines() if line.startswith("│ 4")]
    assert len(table) == 2  # base and pruned
    assert f"{found.layers[2].cv:.2f}" in table[0]
    assert f"{found.after[2].cv:.2f}" in table[1]


def test_the_page_holds_every_picture_and_loads_nothing(full: tuple[Result, Path]) -> None:
    page = Page((full[1] / "analysis.html").read_text())
    assert page.open == []
    assert page.loads == []
    assert set(page.figures) == {
        "use", "use-after", "balance", "weights", "coverage", "domain-0", "domain-1",
        "co-activation-1", "overlap",
    }  # fmt: skip
    policy = [a["content"] for a in page.named("meta") if a.get("http-equiv")]
    assert policy[0] is not None
    assert policy[0].startswith("default-src 'none'")
    assert sum("plotly.js v" in script for script in page.scripts) == 1
    labels = [a["aria-label"] for a in page.named("div") if a.get("role") == "img"]
    assert len(labels) == len(page.figures)
    assert all(labels)


def test_pictures_show_the_numbers(full: tuple[Result, Path]) -> None:
    page, found = Page((full[1] / "analysis.html").read_text()), Analysis.load(full[1])
    heat, crosses = page.figures["use"]["data"]
    for column, layer in enumerate(found.layers):
        assert [row[column] for row in heat["z"]] == pytest.approx([100 * s for s in layer.share])
    places = set(zip(crosses["x"], crosses["y"], strict=True))
    assert places == {
        (i, e) for i, kept in enumerate(KEPT.values()) for e in range(6) if e not in kept
    }
    after = page.figures["use-after"]["data"][0]["z"]
    for column, layer in enumerate(found.after):
        for expert in range(6):
            if expert in layer.experts:
                share = layer.share[layer.experts.index(expert)]
                assert after[expert][column] == pytest.approx(100 * share)
            else:
                assert after[expert][column] is None
    assert found.overlap is not None
    assert page.figures["overlap"]["data"][0]["z"] == [list(r) for r in found.overlap.jaccard]
    lift = page.figures["co-activation-1"]["data"][0]["z"]
    assert lift[0][0] is None
    shown = page.table("Overlap of what criteria would drop")
    assert shown.head == ["", "min-ean", "max-rwn", "max-ecc", "the map"]
    for word, values in zip(found.overlap.words, found.overlap.jaccard, strict=True):
        assert list(shown.row(word).values())[1:] == [f"{value:.2f}" for value in values]
    assert "Before and after pruning" in page.text


def test_scores_alone_make_a_page_without_the_rest() -> None:
    page = Page(render(analyse(scores_of({"prose": TOKENS["prose"]}))))
    assert page.open == []
    assert not {"use-after", "domain-0"} & set(page.figures)
    assert "vmprune analyze --after" in page.text
    assert "Before and after pruning" not in page.text


def test_names_from_files_cannot_leave_their_place() -> None:
    scores = scores_of({HOSTILE: TOKENS["code"], "prose": TOKENS["prose"]})
    page = Page(render(analyse(scores, domains={HOSTILE: 1, "prose": 2})))
    assert page.open == []
    assert page.loads == []
    assert not page.named("img")
    titles = json.dumps(page.figures)
    assert "<img" not in titles


def test_json_is_the_whole_analysis(inputs: Path, tmp_path: Path) -> None:
    done = run(inputs, tmp_path / "out", "--json", "--domains", "prose:2,code", "--keep", "2")
    assert done.exit_code == 0, done.exception
    found = Analysis.model_validate_json(done.stdout)
    assert found == Analysis.load(tmp_path / "out")
    assert found.domains == {"prose": 2, "code": 1}
    assert found.overlap is not None
    assert set(found.overlap.keep.values()) == {2}


def test_what_is_there_stays_unless_forced(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    done = run(inputs, out)
    assert isinstance(done.exception, PruneError)
    assert "already exists" in str(done.exception)
    assert (out / "mine").exists()
    done = run(inputs, out, "--force")
    assert "mine was not written by vmprune" in str(done.exception)
    assert (out / "mine").read_text() == "precious"
    (out / "mine").unlink()
    for _ in range(2):
        assert run(inputs, out, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--layers", "1,x"], "--layers: 'x' is not a layer"),
        (["--layers", "3"], "--layers 3: no such layer"),
        (["--criteria", "min-ean,"], "a name is missing"),
        (["--criteria", "min-foo"], "unknown criterion 'min-foo'"),
        (["--keep", "7"], "--keep 7: layer 0 has 6 experts"),
        (["--domains", "law"], "no scores of domain 'law'"),
        (["--map", "nowhere"], "no routing map"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    words: list[str], said: str, inputs: Path, tmp_path: Path
) -> None:
    done = run(inputs, tmp_path / "out", *words)
    assert isinstance(done.exception, PruneError)
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_help_has_an_example_and_is_light() -> None:
    assert "vmprune analyze --scores" in CliRunner().invoke(analyze, ["--help"]).output
    heavy = "{'plotly', 'jinja2', 'numpy', 'torch', 'scipy'}"
    code = f"import sys, offline.cli.analyze; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
