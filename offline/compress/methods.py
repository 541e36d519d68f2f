"""The methods of `vmprune compress`: what each refuses, how it chooses, and by which items.

A new search method is one file in offline/methods/, one in recipe/, and one entry here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from offline.compress.eep import check_eep, choose_eep
from offline.compress.observations import Observations
from offline.compress.recipe.eep import EepRecipe
from offline.compress.recipe.lottery import LotteryRecipe
from offline.compress.recipe.one_shot import BaselineRecipe, OneShotRecipe
from offline.compress.recipe.recipe import CompressRecipe
from offline.compress.rounds import check_lottery
from offline.compress.run import MethodMaps, Run
from offline.maps.map_space import Space
from offline.methods.baselines import ONE_SHOT
from offline.tasks.catalog import Split
from vllm_moe_prune.checkpoint import Checkpoint


def _allow(recipe: CompressRecipe, space: Space, base: Checkpoint) -> None:
    """Refuse nothing beyond what the recipe and the space do."""


@dataclass(frozen=True, slots=True)
class Method:
    """How one method goes about a run.

    ``recipe`` is what it may be told. ``choose`` gives the maps that it found, the last of which is
    built; None trains in rounds instead (lottery.py). ``decided_on`` are the splits that its
    choice sees.
    """

    recipe: type[CompressRecipe]
    choose: Callable[[Run, Observations], MethodMaps] | None
    check: Callable[[CompressRecipe, Space, Checkpoint], None] = _allow
    decided_on: tuple[Split, ...] = ("search",)


def _one_shot(run: Run, seen: Observations) -> MethodMaps:
    name = run.recipe.chosen_by
    assert name is not None
    return {run.recipe.method.name: seen.maps(name, random.Random(run.recipe.method.seed))[0]}


METHODS: Mapping[str, Method] = {
    "eep": Method(EepRecipe, choose_eep, check_eep, decided_on=("search", "selection")),
    "oneshot": Method(OneShotRecipe, _one_shot),
    "lottery": Method(LotteryRecipe, None, check_lottery),
    **dict.fromkeys(ONE_SHOT, Method(BaselineRecipe, _one_shot)),
}
DEFAULT_METHOD = "eep"
