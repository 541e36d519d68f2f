"""Sensitivity of layers: measured one by one, kept as a file, and what a budget goes by."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from offline.engines.opened import Where
from offline.engines.reading import Reading
from offline.fitness.documents import TextAsked, parse_texts
from offline.maps.depth_groups import DepthGroup
from offline.plan.plan import plan
from offline.plan.recipe import PlanRecipe
from offline.plan.sensitivity import SensitivityAsked, counts_of, measure
from offline.results.sensitivity import LayerSensitivity, Sensitivity, shrunk
from tests.command import invoke, one_error, run
from tests.criteria.scores import scores_of
from tests.sample_files import write_text
from tests.sample_shapes import shape_of
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import DataIdentity, Provenance
from vllm_moe_prune.routing_map import RoutingMap

SCORES = scores_of((1, 2, 5))
WHOLE = PlanRecipe(ratio=0.0)


def known(losses: dict[int, dict[int, float]], recipe: PlanRecipe = WHOLE) -> Sensitivity:
    return Sensitivity(
        base=SCORES.shape.base,
        choice=recipe.choice,
        loss=3.0,
        tokens=100,
        layers=tuple(
            LayerSensitivity(layer=layer, num_experts=6, losses=found)
            for layer, found in losses.items()
        ),
        provenance=Provenance.now("test"),
    )


STEEP = known({1: {2: 0.1, 4: 0.05}, 2: {2: 3.0, 4: 1.0}, 5: {2: 0.2, 4: 0.1}})


def rows(routing_map: RoutingMap) -> list[int]:
    return [layer.num_kept for layer in routing_map.layers]


def test_a_budget_goes_where_the_loss_is() -> None:
    recipe = PlanRecipe(budget=10)
    found = plan(SCORES, recipe, sensitivity=STEEP)
    assert rows(found.routing_map) == [2, 6, 2]
    assert rows(plan(SCORES, PlanRecipe(budget=11), sensitivity=STEEP).routing_map) == [2, 6, 3]
    assert rows(plan(SCORES, recipe).routing_map) != [2, 6, 2]  # what importance alone says
    same = plan(SCORES, PlanRecipe(keep_per_layer="1:2,2:6,5:2")).routing_map
    assert found.routing_map.layers == same.layers  # how many, not which
    told = found.routing_map.provenance.data[-1]
    assert told == STEEP.identity and told.name == "sensitivity"


def test_floors_and_protection_hold() -> None:
    assert rows(plan(SCORES, PlanRecipe(budget=11, floor=3), sensitivity=STEEP).routing_map) == [
        3, 5, 3
    ]  # fmt: skip
    guarded = PlanRecipe(budget=12, protect="5:0-3")
    with pytest.raises(PruneError, match=r"measured with --protect None, not 5:0-3"):
        plan(SCORES, guarded, sensitivity=STEEP)
    again = known({layer.layer: layer.losses for layer in STEEP.layers}, guarded)
    found = plan(SCORES, guarded, sensitivity=again).routing_map
    assert rows(found) == [2, 6, 4]
    assert {0, 1, 2, 3} <= set(found.layers[2].experts.kept or ())


def test_a_curve_is_convex_and_near_what_was_measured() -> None:
    layer = LayerSensitivity(layer=0, num_experts=8, losses={2: 1.4, 4: 0.8, 6: 0.2})
    curve = layer.curve()
    assert curve.shape == (9,) and curve[8] == 0
    assert np.abs(curve[[2, 4, 6]] - [1.4, 0.8, 0.2]).max() < 0.15
    steps = -np.diff(curve)  # what one expert fewer costs, from few left to many
    assert (steps >= 0).all() and (np.diff(steps) <= 1e-12).all()
    harmless = LayerSensitivity(layer=0, num_experts=8, losses={2: -0.1, 5: -0.2})
    assert not harmless.curve().any()  # noise: no layer gains by what it lacks


def test_what_is_all_noise_is_the_same_in_every_layer() -> None:
    def layers(error: float) -> list[LayerSensitivity]:
        return [
            LayerSensitivity(layer=n, num_experts=8, losses={2: loss}, errors={2: error})
            for n, loss in enumerate((0.1, 0.2, 0.3))
        ]

    assert [one.losses[2] for one in shrunk(layers(0.0))] == [0.1, 0.2, 0.3]
    assert [one.losses[2] for one in shrunk(layers(0.5))] == pytest.approx([0.2] * 3)
    # The variance among them is 0.01, of which 0.0064 is noise.
    part = 0.0036 / 0.01
    assert [one.losses[2] for one in shrunk(layers(0.08))] == pytest.approx(
        [0.2 - 0.1 * part, 0.2, 0.2 + 0.1 * part]
    )
    odd = LayerSensitivity(layer=9, num_experts=16, losses={2: 5.0}, errors={2: 9.0})
    assert shrunk([*layers(0.5), odd])[3] == odd  # nothing to compare it with


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(PruneError, match="changes nothing without --budget"):
        plan(SCORES, PlanRecipe(keep=3), sensitivity=STEEP)
    with pytest.raises(PruneError, match="measured with --criterion min-ean, not max-rwn"):
        plan(SCORES, PlanRecipe(budget=10, criterion="rwn"), sensitivity=STEEP)
    other = STEEP.model_copy(update={"base": STEEP.base.model_copy(update={"config": "sha256:1"})})
    with pytest.raises(PruneError, match="the sensitivity is of another base"):
        plan(SCORES, PlanRecipe(budget=10), sensitivity=other)


@pytest.mark.parametrize(
    ("layer", "levels", "counts"),
    [
        (DepthGroup((0,), 8, 2, 8), 9, (2, 3, 4, 5, 6, 7)),
        (DepthGroup((0,), 8, 2, 8), 4, (2, 3, 5, 6)),
        (DepthGroup((0,), 8, 2, 8), 1, (2,)),
        (DepthGroup((0,), 128, 8, 128), 4, (8, 38, 68, 98)),
        (DepthGroup((0,), 16, 4, 16, 4), 8, (4, 8, 12)),
        (DepthGroup((0,), 4, 4, 4), 3, ()),
    ],
)
def test_levels_are_spread_from_the_fewest_on(
    layer: DepthGroup, levels: int, counts: tuple[int, ...]
) -> None:
    assert counts_of(layer, levels) == counts


class Additive:
    """An engine whose loss is 1, and more by a layer's number for each expert that it lacks."""

    def __init__(self) -> None:
        self.kept: dict[int, int] = {}
        self.reader: Any = SimpleNamespace(
            tokenizer=Words(), prefix_token_id=0, max_length=99, readings=self.readings
        )

    def apply(self, routing_map: RoutingMap | None) -> None:
        assert routing_map is not None
        self.kept = {layer.layer: layer.num_kept for layer in routing_map.layers}

    def readings(self, texts: Any, count: int, wanted: Any) -> list[Reading]:
        more = sum(layer * (6 - kept) for layer, kept in self.kept.items())
        made = [np.full(len(text) - 1, -1.0 - more, np.float32) for text in texts]
        return [cast(Reading, SimpleNamespace(log_probs=one)) for one in made]


class Words:
    """A tokenizer of words."""

    eos_token_id = 1
    is_fast = False

    def encode(self, text: str, **_: Any) -> list[int]:
        return [2 + len(word) for word in text.split()]


def test_each_layer_is_measured_alone(tmp_path: Path) -> None:
    file = tmp_path / "prose.jsonl"
    lines = [json.dumps({"text": f"{'a' * n} cat sees {n} fish"}) for n in range(1, 20)]
    file.write_text("\n".join(lines))
    engine = Additive()
    text = TextAsked(parse_texts("--text", f"prose={file}:9"))
    source = DataIdentity(name="scores", count=1, sha256="sha256:0")
    base = cast(Checkpoint, SimpleNamespace(fingerprint=lambda: SCORES.shape.base))
    asked = SensitivityAsked(base, SCORES, source, WHOLE, text, 9, Where())
    steps: list[int] = []
    reporter: Any = SimpleNamespace(
        stage=lambda _, total: steps.append(total), step=lambda: steps.append(-1)
    )
    found = measure(engine, asked, reporter)
    assert found.loss == 1
    assert {one.layer: one.losses for one in found.layers} == {
        layer: {kept: pytest.approx(layer * (6 - kept)) for kept in (2, 3, 4, 5)}
        for layer in (1, 2, 5)
    }
    assert steps == [13] + [-1] * 13 and asked.passes == 13
    assert [data.name for data in found.provenance.data] == ["prose", "scores"]
    errors = [error for one in found.layers for error in one.errors.values()]
    assert errors == pytest.approx([0] * 12)  # every token costs the same here
    assert rows(plan(SCORES, PlanRecipe(budget=12), sensitivity=found).routing_map) == [2, 4, 6]


def test_router_groups_are_measured_in_their_steps() -> None:
    shape = shape_of({1: 6, 2: 6, 5: 6}, 2, base=SCORES.shape.base, num_groups=2)
    scores = replace(SCORES, shape=replace(shape, topk_group=1, model_type="deepseek_v3"))
    source = DataIdentity(name="scores", count=1, sha256="sha256:0")
    base: Any = None
    asked = SensitivityAsked(base, scores, source, WHOLE, TextAsked(()), 9, Where())
    assert {(layer, kept) for layer, kept, _ in asked.maps()} == {(1, 4), (2, 4), (5, 4)}


def test_the_command_writes_what_plan_goes_by(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Checkpoint.open(base)
    layers = tuple(opened.expert_counts())
    own = scores_of(layers, base=opened.fingerprint(), gradients=False, experts=8)
    scores, out, prose = tmp_path / "scores", tmp_path / "out", write_text(tmp_path / "prose.txt")
    own.save(scores)
    text = ("--text", f"prose={prose}:3", "--length", "16", "--levels", "2")
    where = ("--device", "cpu", "--dtype", "float32", "--quiet")
    words = ("sensitivity", "--model", base, "--scores", scores, *text, *where, "--out", out)
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    found = Sensitivity.load(out)
    assert [sorted(one.losses) for one in found.layers] == [[2, 5]] * len(layers)
    assert found.provenance.settings["text"] == ["prose=prose.txt:3"]
    assert any(loss != 0 for one in found.layers for loss in one.losses.values())
    budget = str(5 * len(layers))
    flags = ("--scores", scores, "--budget", budget, "--sensitivity", out, "--out", tmp_path / "m")
    warning = "warning: --budget goes by shares of importance"
    assert warning not in invoke("plan", *flags).stderr
    routing_map = RoutingMap.load(tmp_path / "m")
    assert warning in invoke("plan", *flags[:4], "--out", tmp_path / "by-importance").stderr
    assert sum(rows(routing_map)) == 5 * len(layers)
    told = run("plan", *flags, "--criterion", "euf", "--force", capsys=capsys)
    assert one_error(*told) == "the sensitivity was measured with --criterion min-ean, not min-euf"
