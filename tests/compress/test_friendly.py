"""`vmprune compress --ratio` and `--friendly`: --keep is found before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from offline.compress.recipe.reading import recipe_of
from offline.compress.size import sized
from tests.command import one_error, run

FRIENDLY = "--friendly: 4 experts instead of {} in layers 0-1"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"keep": 5}, (FRIENDLY.format(5),)),
        ({"keep": 3, "top_k": "3"}, (FRIENDLY.format(3),)),
        ({"ratio": 0.4}, (FRIENDLY.format(5),)),
        ({"keep": 4}, ()),
    ],
)
def test_keep_is_rounded_and_said(
    flags: dict[str, Any], said: tuple[str, ...], model: Path
) -> None:
    recipe, changes = sized(recipe_of({"model": model, "friendly": True, **flags}))
    kept: dict[str, Any] = {"keep": 4, "ratio": None}
    assert recipe == recipe_of({"model": model, **flags, **kept})
    assert changes == said


def test_what_changed_is_a_note(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--keep", "5", "--friendly", "--task", "none.yaml", "--out", tmp_path / "out"]
    _, stderr = run("compress", "--model", model, *flags, capsys=capsys)
    assert f"note: {FRIENDLY.format(5)}\n" in stderr


@pytest.mark.parametrize(("ratio", "keep"), [(0.0, 8), (0.3, 6), (0.5, 4), (0.99, 1)])
def test_a_ratio_is_that_of_plan(ratio: float, keep: int, model: Path, tmp_path: Path) -> None:
    found, _ = sized(recipe_of({"model": model, "ratio": ratio, "top_k": "1"}))
    assert (found.method.keep, found.method.ratio) == (keep, None)
    file = tmp_path / "recipe.yaml"
    file.write_text(f"base: {{model: {model}}}\nmethod: {{ratio: {ratio}}}\n")
    assert sized(recipe_of({}, file))[0].method.keep == keep


@pytest.mark.parametrize("other", [["--keep", "4"], ["--budget", "9"]])
def test_a_ratio_excludes_other_sizes(
    other: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--ratio", "0.5", *other, "--out", tmp_path / "out"]
    message = one_error(*run("compress", "--model", model, *flags, capsys=capsys))
    assert message.startswith("settings: give one of --keep")


def test_a_budget_is_not_rounded(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--budget", "9", "--friendly", "--out", tmp_path / "out"]
    message = one_error(*run("compress", "--model", model, *flags, capsys=capsys))
    assert message.startswith("settings: --friendly rounds --keep")
    assert list(tmp_path.iterdir()) == []
