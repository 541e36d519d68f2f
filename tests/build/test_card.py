"""The card of a pruned checkpoint: what decided stands first, the rest is folded away."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from offline.build.build import build
from offline.build.card import card_fields, model_card
from offline.compress.recipe.reading import recipe_of
from tests.sample_maps import uniform_map
from tests.vllm_moe_prune.bare import write_bare
from vllm_moe_prune.checkpoint import Checkpoint
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


CARD = """---
license: other
license_name: qwen
license_link: LICENSE  # beside it
language:
- no
- en
tags:
- moe
- 1.0
pipeline_tag: text-generation
datasets: []
---
# Base, the best model there is
"""


@pytest.mark.parametrize("text", [CARD, "\ufeff" + CARD, CARD.replace("\n", "\r\n")])
def test_licence_language_and_tags_are_the_bases(text: str, tmp_path: Path) -> None:
    """Whatever editor wrote it; `no` is Norwegian, and 1.0 a tag."""
    write_bare(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_bytes(text.encode())
    base = Checkpoint.open(tmp_path / "base")
    build(base, uniform_map(base.folder, [(3, 0), (1, 2)], top_k=1), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head == {
        "base_model": "base",
        "license": "other",
        "license_name": "qwen",
        "license_link": "LICENSE",
        "language": ["no", "en"],
        "pipeline_tag": "text-generation",
        "tags": ["mixture-of-experts", "expert-pruning", "vllm-moe-prune", "moe", "1.0"],
    }
    assert "the best model there is" not in card


@pytest.mark.parametrize("text", ["# no head", "---\nlicense: [\n---\n", "---\n- a\n---\n", ""])
def test_a_card_that_says_nothing_leaves_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    assert card_fields(tmp_path) == {}


def test_one_tag_is_a_tag(base: Path) -> None:
    card = model_card("base", uniform_map(base, UNIFORM), "plain", {"tags": "moe"})
    assert "vllm-moe-prune, moe]" in card
