"""The card of a pruned checkpoint: what decided stands first, the rest is folded away."""

from __future__ import annotations

import json
import re
from pathlib import Path

from offline.build.card import model_card
from offline.compress.recipe.reading import recipe_of
from tests.sample_maps import uniform_map
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap

UNIFORM = [(0, 1, 2, 3)] * 4


def _card(base: Path, settings: dict[str, object]) -> str:
    routing_map: RoutingMap = uniform_map(base, UNIFORM).model_copy(
        update={"provenance": Provenance.now("eep", settings=settings, seed=3)}
    )
    return model_card("Org/base", routing_map, "plain")


def test_what_was_asked_for_comes_first_and_all_else_is_folded(base: Path) -> None:
    recipe = recipe_of({"model": base, "keep": 4, "children": 8})
    card = _card(base, dict(recipe.told(4)))
    first, second = re.findall(r"```json\n(.*?)\n```", card, re.DOTALL)
    assert json.loads(first) == {"method": "eep", "keep": 4, "children": 8}
    assert json.loads(second).keys() == {"defaults", "search"}
    assert card.index("<details>") < card.index(second) < card.index("</details>")
    assert card.index(first) < card.index("<details>")
    assert "null" not in card and "held_out" not in card


def test_settings_without_groups_have_nothing_to_fold(base: Path) -> None:
    card = _card(base, {"criterion": "min-ean", "keep": 4})
    assert "<details>" not in card
    assert '"criterion": "min-ean"' in card
