"""Substituted experts in the contract: rules, files, versions, and what a choice leads to."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vllm_moe_prune.bare import HIDDEN, infos, layer_fields, map_of, write_bare
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.composition import compose
from vllm_moe_prune.constant_experts import ConstantExperts
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap, Substituted
from vllm_moe_prune.layouts import LAYOUTS, layout_of
from vllm_moe_prune.rewrite import Drop, Slice, rewrite
from vllm_moe_prune.routing_map import MAP_FILE, RoutingMap
from vllm_moe_prune.substitutes import check_substitutable

KINDS = ("default", "rows", "merged")


@st.composite
def substituting(draw: st.DrawFn) -> RoutingMap:
    """Draw a map of one layer with kept, substituted and dropped experts in any order."""
    total = draw(st.integers(2, 7))
    order = draw(st.permutations(range(total)))
    kept = draw(st.integers(1, total - 1))
    constant = draw(st.integers(1, total - kept))
    kind = draw(st.sampled_from(KINDS))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    matrices: dict[str, Any] = {"v": rng.normal(size=(constant, HIDDEN)).astype(np.float32)}
    fields = layer_fields(
        num_experts=total,
        num_kept=kept,
        top_k=draw(st.integers(1, kept + constant)),
        experts={"kept": order[:kept]},
        router=draw(st.sampled_from(["sliced", "mapped"])),
        substituted={"experts": order[kept : kept + constant], "vectors": "v"},
    )
    if kind == "merged":
        matrices["em"] = rng.normal(size=(kept, total)).astype(np.float32)
        fields["experts"] = {"matrix": "em"}
    if kind != "default":
        fields["router_rows"] = {"kept": draw(st.permutations(range(total)))[: kept + constant]}
    return map_of(fields, matrices=matrices)


@settings(max_examples=60, deadline=None)
@given(substituting())
def test_a_map_survives_its_files_exactly(routing_map: RoutingMap) -> None:
    with tempfile.TemporaryDirectory() as name:
        routing_map.save(Path(name))
        loaded = RoutingMap.load(Path(name))
    assert loaded == routing_map
    assert loaded.digest() == routing_map.digest()
    assert (loaded.schema_version, loaded.form, loaded.substitutes) == (3, "compact", True)
    (layer,) = loaded.layers
    assert loaded.vectors(layer).tobytes() == routing_map.vectors(layer).tobytes()
    count = len(layer.constant_ids)
    assert f"{count} substituted experts)" in loaded.summary()
    assert loaded.router_matrix(layer).shape == (layer.num_kept + count, layer.num_experts)
    assert loaded.expert_matrix(layer).shape == (layer.num_kept, layer.num_experts)


@settings(max_examples=60, deadline=None)
@given(substituting())
def test_every_choice_leads_to_one_expert_or_vector(routing_map: RoutingMap) -> None:
    (layer,) = routing_map.layers
    count = len(layer.constant_ids)
    assert sorted(layer.choices) == [*range(-count, 0), *range(layer.num_kept)]
    assert len(set(layer.slots)) == layer.num_choices == layer.num_kept + count
    if layer.router_rows is None:  # each row of the router is of the expert that it leads to
        kept, rows = layer.experts.kept or (), routing_map.router_matrix(layer).argmax(axis=1)
        for row, choice, slot in zip(rows, layer.choices, layer.slots, strict=True):
            assert row == slot == (kept[choice] if choice >= 0 else layer.constant_ids[-1 - choice])
        assert list(rows) == sorted(rows)
    assert layer.gate_rows == (layer.num_choices if layer.router == "sliced" else layer.num_experts)


@settings(max_examples=30, deadline=None)
@given(substituting(), st.data())
def test_the_digest_changes_with_whatever_is_substituted(
    routing_map: RoutingMap, data: st.DataObject
) -> None:
    fields, matrices = routing_map.model_dump(), dict(routing_map.matrices)
    (layer,) = fields["layers"]
    ids = layer["substituted"]["experts"]
    change = data.draw(
        st.sampled_from(["vector", "order", "none"] if ids[1:] else ["vector", "none"])
    )
    if change == "vector":
        matrices["v"] = matrices["v"].copy()
        matrices["v"][-1, 0] += np.float32(1e-3)
    elif change == "order":
        layer["substituted"] = {"experts": ids[::-1], "vectors": "v"}
    else:
        del layer["substituted"], matrices["v"]
        layer["top_k"] = 1
        layer["router_rows"] = None
        layer["router"] = "mapped"
    other = RoutingMap.build(matrices=matrices, **fields)
    assert other.digest() != routing_map.digest()


@settings(max_examples=60, deadline=None)
@given(substituting(), st.integers(1, 5), st.integers(0, 2**16))
def test_vectors_are_added_with_the_weight_of_the_choice(
    routing_map: RoutingMap, tokens: int, seed: int
) -> None:
    """Both forms against a loop: experts alone in their slots, and among all E."""
    (layer,) = routing_map.layers
    rng = np.random.default_rng(seed)
    outputs = rng.normal(size=(layer.num_experts, HIDDEN))  # of slots that are computed
    picks = np.array(
        [rng.permutation(layer.num_choices)[: layer.top_k].tolist() for _ in range(tokens)]
    )
    weights = rng.normal(size=picks.shape)
    vectors = routing_map.vectors(layer)
    alone = ConstantExperts.of(routing_map, layer)
    every = ConstantExperts.among_all(routing_map, layer, torch.device("cpu"))
    for constants, ids in ((alone, picks), (every, np.array(layer.slots)[picks])):
        given = (torch.tensor(weights, dtype=torch.float32), torch.tensor(ids))
        left, computed, added = constants(*given)
        assert computed.dtype == given[1].dtype
        assert set(computed.flatten().tolist()) <= (
            set(range(layer.num_kept)) if constants is alone else set(_computed_slots(layer))
        )
        found = (left[:, :, None].numpy() * outputs[computed.numpy()]).sum(axis=1) + added.numpy()
        wanted = np.zeros((tokens, HIDDEN))
        for token in range(tokens):
            for place, pick in enumerate(picks[token]):
                choice = layer.choices[pick]
                own = ids[token, place] if constants is every else choice
                one = vectors[-1 - choice] if choice < 0 else outputs[own]
                wanted[token] += weights[token, place] * one
        assert np.abs(found - wanted).max() < 1e-5


def _computed_slots(layer: LayerMap) -> list[int]:
    return [slot for slot, c in zip(layer.slots, layer.choices, strict=True) if c >= 0]


CONSTANT = {"experts": [0, 5], "vectors": "v"}
BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"substituted": {"experts": [3, 5], "vectors": "v"}}, "substituted: expert 3 is kept"),
    ({"substituted": {"experts": [0, 8], "vectors": "v"}}, "expert 8 is out of range 0..7"),
    ({"substituted": {"experts": [5, 5], "vectors": "v"}}, "expert 5 is listed twice"),
    ({"top_k": 6}, "layer 0: top_k 6 is more than the 3 experts kept and 2 substituted"),
    (
        {"router_rows": {"kept": [1, 3, 6]}},
        "layer 0: router_rows lists 3 experts but the router chooses among 5",
    ),
    (
        {"experts": {"matrix": "em"}, "router": "mapped"},
        "layer 0: substituted beside merged experts needs `router_rows`",
    ),
    (
        {
            "num_kept": 7,
            "experts": {"matrix": "em"},
            "router_rows": {"matrix": "rm"},
            "router": "mapped",
        },
        "layer 0: substituted: 2 and num_kept 7 are more than num_experts 8",
    ),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[text for _, text in BROKEN])
def test_a_broken_rule_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PruneError) as caught:
        map_of(layer_fields(**{"substituted": CONSTANT, **change}))
    assert message in caught.value.message
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(3, 4), (2,), (2, 0), (2, 4, 1)])
def test_vectors_are_as_many_as_experts(shape: tuple[int, ...]) -> None:
    with pytest.raises(PruneError, match=r"layer 0: matrix v has shape .* not \[2, D\]"):
        map_of(layer_fields(substituted=CONSTANT), matrices={"v": np.zeros(shape)})


def substituted() -> RoutingMap:
    vectors = np.arange(2 * HIDDEN, dtype=np.float32).reshape(2, HIDDEN)
    return map_of(layer_fields(substituted=CONSTANT), matrices={"v": vectors})


def test_maps_without_it_are_written_as_before(tmp_path: Path) -> None:
    map_of().save(tmp_path)
    written = json.loads((tmp_path / MAP_FILE).read_text())
    assert written["schema_version"] == 2
    assert "substituted" not in (tmp_path / MAP_FILE).read_text()


@pytest.mark.parametrize("version", [1, 2])
def test_an_old_version_has_no_substituted_experts(version: int, tmp_path: Path) -> None:
    substituted().save(tmp_path)
    text = (tmp_path / MAP_FILE).read_text()
    (tmp_path / MAP_FILE).write_text(text.replace('version": 3', f'version": {version}'))
    with pytest.raises(PruneError, match="`substituted` needs schema_version 3"):
        RoutingMap.load(tmp_path)


def test_their_weights_go_and_their_gate_rows_stay() -> None:
    layers = [layer_fields(n, num_experts=4, num_kept=2, experts={"kept": [3, 1]}) for n in (0, 1)]
    layers[0]["substituted"] = {"experts": [2, 0], "vectors": "v"}
    layers[1]["substituted"] = {"experts": [2], "vectors": "w"}
    vectors = {"v": np.ones((2, HIDDEN)), "w": np.ones((1, HIDDEN))}
    operations = list(rewrite(infos(2, 4), map_of(*layers, matrices=vectors), LAYOUTS["mixtral"]))
    gates = [one for one in operations if not isinstance(one, Drop) and "gate" in one.target.name]
    assert [one.target.shape for one in gates] == [(4, HIDDEN), (3, HIDDEN)]
    assert not isinstance(gates[0], Slice)  # all rows in their order: a copy of bytes
    assert isinstance(gates[1], Slice) and gates[1].rows == (1, 2, 3)
    dropped = [one.source.name for one in operations if isinstance(one, Drop)]
    assert {name.split("experts.")[1][0] for name in dropped} == {"0", "2"}


def test_such_a_map_follows_no_other_and_is_not_followed() -> None:
    small = map_of(layer_fields(num_experts=3, experts={"kept": [0, 1, 2]}))
    for pair in ((substituted(), small), (map_of(layer_fields()), substituted())):
        with pytest.raises(PruneError, match="neither follows another nor is followed"):
            compose(*pair)


@pytest.mark.parametrize("family", ["llama4", "longcat_flash", "deepseek_v4"])
def test_families_in_which_no_vector_can_stand_are_refused(family: str) -> None:
    with pytest.raises(PruneError, match=f"{family} model cannot be substituted: "):
        check_substitutable(LAYOUTS[family])


CONSTANT_BASES: list[tuple[dict[str, Any], str]] = [
    ({"approximate_experts": {"1": [3]}}, "approximate_experts"),
    ({"text_config": {"approximate_experts": {"1": [3]}}}, "text_config.approximate_experts"),
    (
        {"compression_config": {"transform_config": {"expert_substitution": {"version": 1}}}},
        "compression_config.transform_config.expert_substitution",
    ),
]


@pytest.mark.parametrize(("more", "key"), CONSTANT_BASES)
def test_a_base_that_has_constant_experts_is_refused(
    more: dict[str, Any], key: str, tmp_path: Path
) -> None:
    write_bare(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | more
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PruneError) as caught:
        Checkpoint.open(tmp_path)
    assert f"already ({key} in config.json)" in str(caught.value)
    assert "vLLM 0.33" in str(caught.value)


@pytest.mark.parametrize("value", [None, {}, {"transform_config": {}}, {"format": "int-quantized"}])
def test_other_compressed_bases_are_not(value: Any) -> None:
    config = {"model_type": "mixtral", "compression_config": value, "approximate_experts": {}}
    assert layout_of(config).model_type == "mixtral"


def test_a_layer_says_what_is_substituted() -> None:
    (layer,) = substituted().layers
    assert layer.substituted == Substituted(experts=(0, 5), vectors="v")
    assert layer.choices == (-1, 0, 1, -2, 2)
    assert layer.slots == (0, 1, 3, 5, 6)
