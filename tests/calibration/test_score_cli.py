"""`vmprune score` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from offline.calibration.corpus import text_used
from offline.calibration.scores import Scores
from offline.cli.main import cli
from tests.tiny import _WORDS, make_tiny_mixtral
from vllm_moe_prune.errors import PruneError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_mixtral(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "prose.txt"
    file.write_text(" ".join([_WORDS] * 4))
    return file


def score(*arguments: str | Path, catch: bool = False) -> Result:
    words = ["score", "--dtype", "float32", "--device", "cpu", *map(str, arguments)]
    return CliRunner().invoke(cli, words, catch_exceptions=catch)


def test_scores_are_written_and_say_where_they_come_from(
    model: Path, text: Path, tmp_path: Path
) -> None:
    out, scratch = tmp_path / "scores", tmp_path / "scratch"
    scratch.mkdir()
    spec = f"{text}:3,more={text}"
    result = score(
        *("--model", model, "--calibration", spec, "--out", out, "--length", "16"),
        *("--sequences", "2", "--seed", "3", "--gradients", "--scratch", scratch, "--json"),
    )
    assert result.exit_code == 0, result.output
    assert not list(scratch.iterdir())
    facts = json.loads(result.stdout)
    assert facts["domains"]["prose"]["tokens"] == 48 and facts["domains"]["more"]["sequences"] == 2
    used = {"rows": 1, "used": 1, "skipped": {}, "left_out": 0}
    assert facts["domains"]["prose"]["text"] == {**used, "tokens": 48}
    assert facts["estimate"]["memory"]["weights"] > 0
    assert "memory: about" in result.stderr and "hidden states" in result.stderr
    scores = Scores.load(out)
    assert scores.evidence()[0].seen.gradient is not None
    assert scores.sequences == {"prose": 3, "more": 2}
    made = scores.provenance
    assert made.method == "score" and made.seed == 3
    named = spec.replace(f"{tmp_path}/", "")  # where a text lay is of this machine alone
    assert made.settings["length"] == 16 and made.settings["calibration"] == named != spec
    assert made.settings["text"] == {name: d["text"] for name, d in facts["domains"].items()}
    assert [(d.name, d.count) for d in made.data] == [("prose", 3), ("more", 2)]
    for name, domain in facts["domains"].items():
        unseen = [
            [layer, expert]
            for layer, seen in scores.domains[name].items()
            for expert in range(8)
            if seen.counts[expert] == 0
        ]
        assert domain["never_seen"] == unseen


def test_rows_that_are_passed_over_are_told(model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("title,body\n" + 'a,""\nb,"the cat sees a dog"\n' * 9)
    given = ("--model", model, "--length", "5", "--out", tmp_path / "scores")
    result = score(*given, "--calibration", f"{rows}#body:9", "--no-pack")
    assert result.exit_code == 0, result.output
    (use,) = text_used(Scores.load(tmp_path / "scores").provenance).values()
    assert (use.used, use.tokens, use.skipped) == (9, 45, {"empty": use.rows - 9})
    assert f"{use.rows - 9} empty" in result.stdout
    with pytest.raises(PruneError, match=r"its columns are body, title"):
        score(*given, "--force", "--calibration", str(rows))


def test_experts_never_seen_are_named(model: Path, text: Path, tmp_path: Path) -> None:
    result = score(
        *("--model", model, "--calibration", f"{text}:1", "--out", tmp_path / "scores"),
        *("--length", "2"),  # 2 tokens choose at most 4 of the 8 experts
    )
    assert result.exit_code == 0, result.output
    counts = Scores.load(tmp_path / "scores").domains["prose"][0].counts
    unseen = [expert for expert in range(8) if counts[expert] == 0]
    assert len(unseen) >= 4
    assert f"0:{unseen[0]}" in result.stdout and "written to" in result.stdout


def test_an_offloaded_run_leaves_nothing_behind(model: Path, text: Path, tmp_path: Path) -> None:
    offload = tmp_path / "offload"
    offload.mkdir()
    given = ("--model", model, "--calibration", f"{text}:2", "--length", "16")
    result = score(*given, "--out", tmp_path / "scores", "--offload", offload)
    assert result.exit_code == 0, result.output
    assert not list(offload.iterdir()) and "offloaded layers" in result.stderr
    score(*given, "--out", tmp_path / "whole")
    tensors = [(tmp_path / n / "scores.safetensors").read_bytes() for n in ("scores", "whole")]
    assert tensors[0] == tensors[1]


def test_what_is_there_is_kept_without_force(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    out.mkdir()
    (out / "mine").write_text("precious")
    given = ("--model", model, "--calibration", f"{text}:2", "--out", out, "--length", "16")
    with pytest.raises(PruneError, match="already exists"):
        score(*given)
    with pytest.raises(PruneError, match="mine was not written by vmprune"):
        score(*given, "--force")
    assert (out / "mine").read_text() == "precious" and len(list(tmp_path.iterdir())) == 2
    (out / "mine").rename(tmp_path / "mine")
    assert score(*given, "--force").exit_code == 0
    with pytest.raises(PruneError, match="domain prose has text for"):
        score(*given, "--force", "--length", "400")
    assert Scores.load(out).sequences == {"prose": 2} and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("flag", ["--offload", "--scratch"])
def test_a_folder_that_is_not_there_is_named(
    model: Path, text: Path, tmp_path: Path, flag: str
) -> None:
    with pytest.raises(PruneError, match=f"{flag}: .*nowhere is not a folder"):
        score(
            *("--model", model, "--calibration", text, "--out", tmp_path / "scores"),
            *(flag, tmp_path / "nowhere"),
        )
