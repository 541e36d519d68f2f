"""What a lottery's settings refuse, and how flags find their way into its numbers."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from offline.cli.main import cli
from offline.compress.recipe.lottery import LotteryRecipe
from offline.compress.recipe.reading import recipe_of
from offline.lottery.schedule import LotterySettings
from tests.lottery.conftest import Ground
from vllm_moe_prune.errors import PruneError

GIVEN: dict[str, Any] = {"model": "base", "method": "lottery", "keep": 4}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"top_k": "1"}, "--top-k is .*; this is lottery"),
        ({"engine": "vllm"}, "lottery trains: it needs --engine transformers --replicas 1"),
        ({"replicas": 2}, "lottery trains: it needs --engine transformers --replicas 1"),
        ({"fitness": "agreement"}, "--fitness agreement is for searches"),
        ({"criterion": "min-luck"}, "unknown criterion 'min-luck', nor is it random"),
        ({"keep": None, "budget": 9}, "--budget is eep and oneshot's; this is lottery"),
        ({"learning_rate": 0.0}, "learning_rate: Input should be greater than 0"),
    ],
)
def test_what_a_lottery_cannot_keep_to_is_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(PruneError, match=message):
        recipe_of(GIVEN | flags)


def numbers(**flags: Any) -> LotterySettings:
    recipe = recipe_of(GIVEN | flags)
    assert isinstance(recipe, LotteryRecipe)
    return recipe.settings_of_rounds()


def test_flags_change_the_preset() -> None:
    made = numbers(preset="paper", trainable="router")
    assert (made.tuning.trainable, made.tuning.learning_rate) == ("router", 1e-6)
    assert (made.round_tokens, made.token_cap, made.finetune) == (200_000, 1_100_000, True)
    made = numbers(finetune=False, rounds=2)
    assert (made.finetune, made.rounds, made.round_tokens) == (False, 2, 50_000)


def test_every_number_has_a_flag_with_help() -> None:
    text = CliRunner().invoke(cli, ["compress", "--help"]).output
    for flag in ("--rounds", "--no-finetune", "--trainable", "--token-cap", "--accelerate-config"):
        assert flag in text
    assert text.index("--model") < text.index("--rounds")  # what all methods share comes first


def test_a_text_that_the_model_cannot_take_is_refused_before_any_work(
    ground: Ground, tmp_path: Any
) -> None:
    with pytest.raises(PruneError, match="--length 4096: the model takes at most 512 tokens"):
        ground.compress(tmp_path / "out", length=4096)
    with pytest.raises(PruneError, match="--rounds 4: only 3 experts of a layer"):
        ground.compress(tmp_path / "out", rounds=4)
    with pytest.raises(PruneError, match="no round would drop one"):
        ground.compress(tmp_path / "out", keep=8, rounds=None)
    assert list(tmp_path.iterdir()) == []
