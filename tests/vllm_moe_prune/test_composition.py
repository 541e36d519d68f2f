"""One map after another: as one map of the first one's base, or refused with the reason."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.build.build import build
from offline.engines.local.transformers import TransformersEngine
from tests.sample_maps import map_of as map_for
from tests.sample_maps import uniform_map
from tests.tiny import make_tiny_mixtral, random_map
from tests.vllm_moe_prune.bare import MIXTRAL, layer_fields, map_of, routing_maps
from vllm_moe_prune import composition
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.composition import compose
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.provenance import DataIdentity, Provenance
from vllm_moe_prune.routing_map import RoutingMap
from vllm_moe_prune.tuning import Tuning

IDS = torch.arange(3, 75).view(2, 36)
TUNING = Tuning(trainable="all", parameters=10, steps=3, tokens=99, learning_rate=1e-4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_mixtral(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def engine(base: Path) -> TransformersEngine:
    return TransformersEngine(base, dtype="float32")


def _merged_behind_ids(base: Path, rng: Any) -> RoutingMap:
    """Merged experts whose gate keeps rows by id: plain, but its experts are no ids."""
    matrices = {f"layers__{n}__em": rng.normal(0, 0.5, (5, 8)) for n in range(2)}
    layers = [
        LayerMap(
            layer=n,
            num_experts=8,
            num_kept=5,
            top_k=2,
            experts=Selection(matrix=f"layers.{n}.em"),
            router_rows=Selection(kept=tuple(int(i) for i in rng.choice(8, 5, replace=False))),
        )
        for n in range(2)
    ]
    return map_for(base, layers, **matrices)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6))
def test_both_at_once_on_the_base_are_the_second_on_what_the_first_made(
    base: Path, engine: TransformersEngine, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    if rng.integers(3) == 0:
        first = _merged_behind_ids(base, rng)
    else:
        kept = [[int(i) for i in rng.choice(8, 5, replace=False)] for _ in range(2)]
        first = uniform_map(base, kept)
    with tempfile.TemporaryDirectory() as name:
        made = Path(name) / "made"
        assert build(Checkpoint.open(base), first, made).form == "plain"
        second = random_map(made, rng)
        smaller = TransformersEngine(made, dtype="float32")
        smaller.apply(second)
        expected = smaller.logits(IDS)
    engine.apply(compose(first, second))
    torch.testing.assert_close(engine.logits(IDS), expected, rtol=0, atol=2e-4)


def _chain(data: st.DataObject, first: RoutingMap) -> RoutingMap:
    """Draw a map with integer matrices for what another makes, so that products are exact."""
    matrices: dict[str, Any] = {}
    layers = []
    for entry in first.layers:
        count = entry.num_kept
        kept = data.draw(st.permutations(range(count)))[: data.draw(st.integers(1, count))]
        fields = layer_fields(entry.layer, num_experts=count, num_kept=len(kept), top_k=1)
        fields["experts"], fields["router"] = {"kept": kept}, "sliced"
        if data.draw(st.booleans()):
            fields["router"] = "mapped"
            name = f"layers.{entry.layer}.rm"
            rows = data.draw(
                st.lists(
                    st.lists(st.integers(-2, 3), min_size=count, max_size=count),
                    min_size=len(kept),
                    max_size=len(kept),
                )
            )
            matrices[name], fields["router_rows"] = np.array(rows), {"matrix": name}
        layers.append(fields)
    return map_of(*layers, matrices=matrices)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_then_is_associative(data: st.DataObject) -> None:
    start = map_of(layer_fields(0, num_kept=8, experts={"kept": list(range(8))}))
    a = _chain(data, start)
    b = _chain(data, a)
    c = _chain(data, b)
    assert compose(compose(a, b), c).digest() == compose(a, compose(b, c)).digest()


@settings(max_examples=40, deadline=None)
@given(routing_maps())
def test_a_map_after_or_before_one_that_changes_nothing_is_itself(one: RoutingMap) -> None:
    before = [
        layer_fields(
            entry.layer,
            num_experts=entry.num_experts,
            num_kept=entry.num_experts,
            top_k=1,
            experts={"kept": list(range(entry.num_experts))},
        )
        for entry in one.layers
    ]
    after = [
        layer_fields(
            entry.layer,
            num_experts=entry.num_kept,
            num_kept=entry.num_kept,
            top_k=entry.top_k,
            experts={"kept": list(range(entry.num_kept))},
        )
        for entry in one.layers
    ]
    assert compose(map_of(*before), one).digest() == one.digest()
    assert compose(one, map_of(*after)).digest() == one.digest()


def test_ids_stay_ids_and_the_result_stays_plain() -> None:
    first = map_of(layer_fields(0, num_kept=5, experts={"kept": [7, 1, 3, 0, 6]}))
    second = map_of(layer_fields(0, num_experts=5, num_kept=2, experts={"kept": [4, 0]}))
    both = compose(first, second)
    assert both.layers[0].experts.kept == (6, 7)
    assert (both.form, both.layers[0].num_experts, both.matrices) == ("plain", 8, {})


def _mapped_after_sliced(kept: int) -> tuple[RoutingMap, RoutingMap]:
    first = map_of(layer_fields(0, num_kept=kept, experts={"kept": list(range(kept))}))
    more = {"num_experts": kept, "num_kept": 2, "experts": {"kept": [1, 0]}, "router": "mapped"}
    return first, map_of(layer_fields(0, **more))


@pytest.mark.parametrize(
    ("change", "kept", "refused"),
    [
        ({"renormalise": False}, 5, True),
        ({"renormalise": False}, 8, False),  # the softmax runs over all of them all the same
        ({"renormalise": False, "score": "sigmoid"}, 5, False),
        ({}, 5, False),
    ],
)
def test_a_mapped_router_over_a_sliced_one_is_refused_where_it_is_not_exact(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], kept: int, refused: bool
) -> None:
    layout = dataclasses.replace(MIXTRAL, **change)
    monkeypatch.setattr(composition, "layout_of", lambda _: layout)
    first, second = _mapped_after_sliced(kept)
    if refused:
        with pytest.raises(PruneError, match="layer 0: a mapped router cannot follow a sliced"):
            compose(first, second)
    else:
        assert compose(first, second).layers[0].router == "mapped"


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ([layer_fields(0)], "layer 0: the first routing map makes 3 experts, the second is for 8"),
        (
            [layer_fields(0, num_experts=3, num_kept=2, experts={"kept": [0, 1]}), layer_fields(1)],
            "layer 1: the first routing map makes 0 experts",
        ),
    ],
)
def test_a_map_of_another_model_cannot_follow(second: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(PruneError, match=message):
        compose(map_of(layer_fields(0)), map_of(*second))


def test_the_composed_map_tells_of_both() -> None:
    def made(method: str, seed: int, data: str) -> Provenance:
        identity = DataIdentity(name=data, count=1, sha256="sha256:1")
        return Provenance.now(method, settings={"keep": seed}, seed=seed, data=(identity,))

    first = map_of(provenance=made("oneshot", 3, "prose"), tokens_seen={0: (9,) * 8})
    fields = layer_fields(0, num_experts=3, num_kept=2, experts={"kept": [2, 0]})
    second = map_of(fields, provenance=made("eep", 4, "sciq"), tuned=(TUNING,))
    both = compose(first, second)
    assert both.provenance.method == "oneshot then eep"
    told = both.provenance.settings["steps"]
    assert isinstance(told, list)
    assert told == [
        {"method": "oneshot", "seed": 3, "settings": {"keep": 3}},
        {"method": "eep", "seed": 4, "settings": {"keep": 4}},
    ]
    assert [entry.name for entry in both.provenance.data] == ["prose", "sciq"]
    assert (both.tokens_seen, both.base, both.tuned) == ({0: (9,) * 8}, first.base, (TUNING,))
    third = map_of(layer_fields(0, num_experts=2, num_kept=1, top_k=1, experts={"kept": [0]}))
    steps = compose(both, third).provenance.settings["steps"]
    assert isinstance(steps, list) and [s["method"] for s in steps][-1] == "by hand"  # type: ignore[index,call-overload]
    assert len(steps) == 3


def test_a_tuned_map_survives_its_file_and_is_refused_on_its_base(
    base: Path, engine: TransformersEngine, tmp_path: Path
) -> None:
    tuned = uniform_map(base, [[0, 1, 2], [3, 4, 5]]).model_copy(update={"tuned": (TUNING,)})
    tuned.save(tmp_path / "map")
    loaded = RoutingMap.load(tmp_path / "map")
    assert loaded == tuned
    for apply in (
        lambda: engine.apply(loaded),
        lambda: build(Checkpoint.open(base), loaded, tmp_path / "out"),
    ):
        with pytest.raises(PruneError, match="were tuned for 3 steps after pruning") as caught:
            apply()
        assert caught.value.hint == "serve or load the checkpoint that the map lies beside"
    assert not (tmp_path / "out").exists()


def test_an_old_map_is_read_and_cannot_say_that_it_was_tuned(tmp_path: Path) -> None:
    map_of(schema_version=1).save(tmp_path)
    text = (tmp_path / "routing_map.json").read_text()
    assert RoutingMap.load(tmp_path).schema_version == 1
    assert '"tuned": []' in text
    (tmp_path / "routing_map.json").write_text(
        text.replace('"tuned": []', f'"tuned": [{TUNING.model_dump_json()}]')
    )
    with pytest.raises(PruneError, match="`tuned` needs schema_version 2"):
        RoutingMap.load(tmp_path)
