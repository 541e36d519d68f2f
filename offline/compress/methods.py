"""The methods of `vmprune compress`: what each refuses, how it chooses, and by which items.

A new search method is one file in offline/methods/, a recipe with its sections (recipe/), and one
entry here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from offline.compress.eep import check_eep, choose_eep
from offline.compress.observations import Observations
from offline.compress.recipe.recipe import CompressRecipe
from offline.compress.run import MethodMaps, Run
from offline.maps.map_space import Space
from offline.methods.baselines import ONE_SHOT
from offline.tasks.catalog import Split


def _allow(recipe: CompressRecipe, space: Space) -> None:
    """Refuse nothing beyond what the recipe and the space do."""


@dataclass(frozen=True, slots=True)
class Method:
    """How one method goes about a run.

    ``choose`` gives the maps that it found, the last of which is built; None trains in rounds
    instead (lottery.py). ``decided_on`` are the splits that its choice sees.
    """

    choose: Callable[[Run, Observations], MethodMaps] | None
    check: Callable[[CompressRecipe, Space], None] = _allow
    decided_on: tuple[Split, ...] = ("search",)


def _one_shot(run: Run, seen: Observations) -> MethodMaps:
    name = run.recipe.chosen_by
    assert name is not None
    return {run.recipe.method.name: seen.maps(name, random.Random(run.recipe.method.seed))[0]}


METHODS: Mapping[str, Method] = {
    "eep": Method(choose_eep, check_eep, decided_on=("search", "selection")),
    "oneshot": Method(_one_shot),
    "lottery": Method(None),
    **dict.fromkeys(ONE_SHOT, Method(_one_shot)),
}
