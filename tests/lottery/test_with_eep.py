"""EEP after a lottery and a lottery after EEP: two maps, one after the other, on the first base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from offline.engines.local.transformers import TransformersEngine
from tests.lottery.conftest import Ground
from vllm_moe_prune.composition import compose
from vllm_moe_prune.routing_map import RoutingMap

IDS = torch.arange(3, 75).view(2, 36)
EEP: dict[str, Any] = {
    "method": "eep",
    "rounds": None,
    "phases": "prune",
    "groups": "layer",
    "evaluations": 6,
    "initial": 4,
    "finalists": 2,
    "racing": False,
    "seeding": False,
}
LOTTERY: dict[str, Any] = {"finetune": False}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (LOTTERY | {"keep": 6}, EEP | {"keep": 4}),
        (EEP | {"keep": 6}, LOTTERY | {"keep": 4}),
        (LOTTERY | {"keep": 6}, EEP | {"keep": 4, "phases": "both", "evaluations": 12}),
    ],
    ids=["EEP after a lottery", "a lottery after EEP", "EEP that merges after a lottery"],
)
def test_the_two_maps_composed_are_the_second_model(
    ground: Ground, tmp_path: Path, first: dict[str, Any], second: dict[str, Any]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    ground.compress(one, **first)
    ground.compress(two, model=one, **second)
    maps = [RoutingMap.load(folder) for folder in (one, two)]
    both = compose(maps[0], maps[1])
    assert {layer.num_experts for layer in both.layers} == {8}
    assert {layer.num_kept for layer in both.layers} == {4}
    assert " then " in both.provenance.method
    engine = TransformersEngine(ground.model, dtype="float32")
    engine.apply(both)
    if maps[1].form == "plain":
        made = TransformersEngine(two, dtype="float32")
    else:  # a compact checkpoint is its base with its map
        made = TransformersEngine(one, dtype="float32")
        made.apply(maps[1])
    torch.testing.assert_close(engine.logits(IDS), made.logits(IDS), rtol=0, atol=2e-4)


def test_eep_after_a_tuned_lottery_gives_a_map_that_knows_of_the_tuning(
    ground: Ground, won: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ground.compress(out, model=won, **EEP | {"keep": 4})
    first, second = RoutingMap.load(won), RoutingMap.load(out)
    assert second.tuned == ()  # its base is the tuned checkpoint, on which it may be applied
    engine = TransformersEngine(won, dtype="float32")
    engine.apply(second)
    made = TransformersEngine(out, dtype="float32")
    torch.testing.assert_close(engine.logits(IDS), made.logits(IDS), rtol=0, atol=1e-5)
    assert compose(first, second).tuned == first.tuned != ()
