"""`vmprune compress --ratio` and `--friendly`: --keep is found before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from offline.cli.compress import _friendly, _kept
from offline.compress.recipe import CompressRecipe
from tests.command import one_error, run


@pytest.mark.parametrize(
    ("flags", "keep", "said"),
    [
        ({"keep": 5}, 4, "note: --friendly: 4 experts instead of 5 in layers 0-1\n"),
        ({"keep": 3, "top_k": "3"}, 4, "note: --friendly: 4 experts instead of 3 in layers 0-1\n"),
        ({"keep": 4}, 4, ""),
    ],
)
def test_keep_is_rounded_and_said(
    flags: dict[str, Any], keep: int, said: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = CompressRecipe.merge(None, {"model": model, **flags})
    assert _friendly(recipe) == recipe.model_copy(update={"keep": keep})
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(("ratio", "keep"), [(0.0, 8), (0.3, 6), (0.5, 4), (0.99, 1)])
def test_a_ratio_is_that_of_plan(ratio: float, keep: int, model: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"model": model, "keep": None, "budget": None}
    assert _kept(None, ratio, flags) == keep
    file = tmp_path / "recipe.yaml"
    file.write_text(f"model: {model}\n")
    assert _kept(file, ratio, flags | {"model": None}) == keep


def test_a_ratio_excludes_other_sizes(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for other in (["--keep", "4"], ["--budget", "9"]):
        flags = ["--ratio", "0.5", *other, "--out", tmp_path / "out"]
        result = run("compress", "--model", model, *flags, capsys=capsys)
        assert one_error(*result) == "give one of --keep, --ratio and --budget"


def test_a_budget_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--budget", "9", "--friendly", "--out", tmp_path / "out"]
    message = one_error(*run("compress", "--model", model, *flags, capsys=capsys))
    assert message.startswith("--friendly rounds --keep")
    assert list(tmp_path.iterdir()) == []
