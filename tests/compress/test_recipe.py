"""One schema for flags and recipe files: flags win, and every mistake is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from offline.compress.recipe import CompressRecipe
from vllm_moe_prune.errors import PruneError


def test_flags_override_the_recipe_and_the_recipe_the_defaults(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: base\nkeep: 4\nseed: 7\ngroups: layer\n")
    merged = CompressRecipe.merge(recipe, {"keep": 2, "seed": None, "top_k": "1"})
    assert (merged.model, merged.keep, merged.seed, merged.top_k) == (Path("base"), 2, 7, "1")
    assert (merged.groups, merged.method, merged.evaluations) == ("layer", "eep", None)


def test_a_number_of_active_experts_in_a_file_is_meant_for_all_layers(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: base\nkeep: 4\ntop_k: 1\nracing: false\n")
    merged = CompressRecipe.merge(recipe, {"racing": None})
    assert (merged.top_k, merged.racing, merged.seeding) == ("1", False, None)


def test_baselines_are_named_once_each() -> None:
    recipe = CompressRecipe(model=Path("base"), keep=4, compare="naee, random,naee")
    assert recipe.baselines == ("naee", "random")
    assert CompressRecipe(model=Path("base"), keep=4, compare="none").baselines == ()


MISTAKES = [
    ("keep: 4\n", "model: Field required", "add --model"),
    (
        "model: base\n",
        "give either --keep (experts per layer) or --budget (in all layers)",
        None,
    ),
    (
        "model: base\nkeep: 4\ncompare: magic\n",
        "--compare: 'magic' is none of random, frequency, soft_activation, naee, none, "
        "nor a criterion such as min-ean",
        None,
    ),
    ("model: base\nkeep: 4\nexperts: 4\n", "experts: Extra inputs are not permitted", None),
    ("model: base\nkeep: 0\n", "keep: Input should be greater than or equal to 1", None),
    (
        "model: base\nkeep: 4\nmethod: magic\n",
        "method: Input should be 'eep', 'oneshot', 'lottery', 'random', 'frequency', "
        "'soft_activation' or 'naee'",
        None,
    ),
]


@pytest.mark.parametrize(("text", "message", "hint"), MISTAKES, ids=[m for _, m, _ in MISTAKES])
def test_a_wrong_entry_is_named(text: str, message: str, hint: str | None, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(PruneError) as caught:
        CompressRecipe.merge(recipe, {})
    assert caught.value.message == f"recipe {recipe}: {message}"
    assert caught.value.hint == hint


def test_without_a_recipe_the_missing_flag_is_named() -> None:
    with pytest.raises(PruneError) as caught:
        CompressRecipe.merge(None, {"model": None, "keep": 4})
    assert str(caught.value) == "settings: model: Field required (hint: add --model)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "is not a table of settings"),
        ("", "is not a table of settings"),
        ("keep: [4\n", "is not YAML: "),
        (None, "no recipe file at "),
    ],
)
def test_a_file_that_is_no_recipe_is_one_line(
    text: str | None, message: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(PruneError) as caught:
        CompressRecipe.merge(tmp_path / "recipe.yaml", {})
    assert message in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(("groups", "count"), [("4", 4), ("layer", 24), ("1", 1)])
def test_groups_are_a_number_or_one_per_layer(groups: str, count: int) -> None:
    entries: dict[str, Any] = {"model": Path("base"), "keep": 4, "groups": groups}
    assert CompressRecipe.merge(None, entries).num_groups(24) == count


@pytest.mark.parametrize("groups", ["0", "-1", "many", ""])
def test_other_groups_are_refused(groups: str) -> None:
    recipe = CompressRecipe(model=Path("base"), keep=4, groups=groups)
    with pytest.raises(PruneError, match="is neither a number nor `layer`"):
        recipe.num_groups(24)
