"""The contract: rules over the whole map, exact files, a digest of what the map does."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vllm_moe_prune.bare import BASE, MERGED, layer_fields, map_of, routing_maps, two
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.fingerprint import BaseFingerprint
from vllm_moe_prune.provenance import DataIdentity, Provenance
from vllm_moe_prune.routing_map import MAP_FILE, MATRIX_FILE, SCHEMA_VERSION, RoutingMap


@settings(max_examples=25, deadline=None)
@given(routing_maps())
def test_a_map_survives_its_files_exactly(routing_map: RoutingMap) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        routing_map.save(folder)
        text = (folder / MAP_FILE).read_bytes()
        loaded = RoutingMap.load(folder)
        assert loaded.model_dump() == routing_map.model_dump()
        assert loaded.digest() == routing_map.digest()
        assert loaded.matrices.keys() == routing_map.matrices.keys()
        for key, matrix in routing_map.matrices.items():
            assert loaded.matrices[key].tobytes() == matrix.tobytes()
        assert (folder / MATRIX_FILE).exists() == bool(routing_map.matrices)
        loaded.save(folder)
        assert (folder / MAP_FILE).read_bytes() == text
        assert sum(b'"num_kept"' in line for line in text.splitlines()) == len(loaded.layers)


@settings(max_examples=25, deadline=None)
@given(routing_maps(), st.data())
def test_the_digest_changes_with_whatever_the_map_does(
    routing_map: RoutingMap, data: st.DataObject
) -> None:
    fields = routing_map.model_dump()
    layer = data.draw(st.sampled_from(fields["layers"]))
    changes = ["layer", "router", "num_experts"]
    changes += ["top_k"] if layer["num_kept"] > 1 else []
    changes += ["order"] if layer["num_kept"] > 1 and layer["experts"]["kept"] else []
    change = data.draw(st.sampled_from(changes if not routing_map.matrices else changes[:1]))
    fields["layers"] = [dict(entry) for entry in fields["layers"]]
    changed = next(entry for entry in fields["layers"] if entry["layer"] == layer["layer"])
    match change:
        case "layer":
            changed["layer"] += 100
        case "router":
            changed["router"] = "mapped" if changed["router"] == "sliced" else "sliced"
        case "num_experts":
            changed["num_experts"] += 1
        case "top_k":
            changed["top_k"] = changed["top_k"] - 1 or changed["num_kept"]
        case "order":
            kept = changed["experts"]["kept"]
            changed["experts"] = {"kept": kept[::-1]}
    other = RoutingMap.build(matrices=routing_map.matrices, **fields)
    assert other.digest() != routing_map.digest()


@pytest.mark.parametrize("name", ["em", "rm"])
def test_the_digest_changes_with_any_entry_of_a_matrix(name: str) -> None:
    matrices = two()
    before = map_of(MERGED, matrices=matrices).digest()
    matrices[name][1, 2] += np.float32(1e-6)
    assert map_of(MERGED, matrices=matrices).digest() != before


def test_the_digest_does_not_change_with_time_maker_or_name() -> None:
    one = map_of(provenance=Provenance(method="eep", seed=1, created="2026-01-01T00:00:00+00:00"))
    two_ = map_of(
        provenance=Provenance(method="by hand", created="2027-01-01T00:00:00+00:00"),
        base=BASE.model_copy(update={"name": "elsewhere"}).model_dump(),
        tokens_seen={0: tuple(range(8))},
    )
    assert one.digest() == two_.digest()


def test_the_digest_is_frozen() -> None:
    """It names results in logs and reports, so it must mean the same in later versions."""
    assert map_of().digest() == (
        "sha256:093db174c03ee7a670c226fcfb4c0433da3c5d6feceb4b0476ba10a590a65ba8"
    )


def test_the_schema_is_frozen() -> None:
    """Another tool may read and write maps: a new field needs a new schema_version."""
    assert SCHEMA_VERSION == 3
    schema = RoutingMap.model_json_schema()
    names = {"RoutingMap": sorted(schema["properties"])}
    parts = {name: entry for name, entry in schema["$defs"].items() if name != "JsonValue"}
    names |= {name: sorted(entry["properties"]) for name, entry in parts.items()}
    assert names == {
        "RoutingMap": [
            "base",
            "layers",
            "model_type",
            "num_groups",
            "provenance",
            "schema_version",
            "tokens_seen",
            "tuned",
        ],
        "LayerMap": [
            "experts",
            "layer",
            "num_experts",
            "num_kept",
            "router",
            "router_rows",
            "substituted",
            "top_k",
        ],
        "Selection": ["kept", "matrix"],
        "Substituted": ["experts", "vectors"],
        "BaseFingerprint": ["config", "index", "name", "routers", "weights", "whole"],
        "Provenance": ["created", "data", "method", "seed", "settings", "tool", "versions"],
        "DataIdentity": ["count", "name", "sha256", "split"],
        "Tuning": ["data", "learning_rate", "parameters", "steps", "tokens", "trainable"],
    }


def test_everything_that_provenance_says_is_in_the_file(tmp_path: Path) -> None:
    data = (DataIdentity(name="sciq", split="search", count=3, sha256="sha256:d"),)
    made = Provenance.now("eep", settings={"keep": 4}, seed=7, data=data)
    map_of(provenance=made, tokens_seen={0: (9,) * 8}).save(tmp_path)
    loaded = RoutingMap.load(tmp_path)
    assert loaded.provenance == made
    assert loaded.tokens_seen == {0: (9,) * 8}
    assert loaded.provenance.versions.keys() >= {"python", "numpy", "safetensors"}


FORMS = [
    ("plain", [layer_fields(0), layer_fields(1, experts={"kept": [0, 1, 2]})]),
    ("compact", [layer_fields(0), layer_fields(1, num_kept=2, experts={"kept": [0, 1]})]),
    ("compact", [layer_fields(0), layer_fields(1, top_k=1)]),
    ("compact", [layer_fields(0), layer_fields(1, router="mapped")]),
]


@pytest.mark.parametrize(("form", "layers"), FORMS)
def test_only_uniform_sliced_maps_are_plain(form: str, layers: list[dict[str, Any]]) -> None:
    assert map_of(*layers).form == form


def test_merged_experts_behind_a_sliced_router_are_plain() -> None:
    layer = MERGED | {"router": "sliced", "router_rows": {"kept": [0, 2]}}
    routing_map = map_of(layer, matrices={"em": np.full((2, 4), 0.25)})
    assert routing_map.form == "plain"
    assert "1 merged layers" in routing_map.summary()


def test_config_gets_the_largest_counts() -> None:
    smaller = layer_fields(1, num_kept=2, top_k=1, experts={"kept": [0, 1]})
    routing_map = map_of(layer_fields(0), smaller)
    assert (routing_map.max_kept, routing_map.max_top_k) == (3, 2)
    assert routing_map.summary() == (
        "compact: 5 of 16 experts in 2 layers (2/3 per layer, top-1/2, 0 mapped routers, "
        "0 merged layers)"
    )


def test_a_one_hot_row_selects_its_expert() -> None:
    routing_map = map_of(layer_fields(experts={"kept": [6, 1, 3]}))
    expected = np.zeros((3, 8), np.float32)
    expected[0, 6] = expected[1, 1] = expected[2, 3] = 1
    assert np.array_equal(routing_map.expert_matrix(routing_map.layers[0]), expected)
    assert np.array_equal(routing_map.router_matrix(routing_map.layers[0]), expected)


def test_groups_must_lose_the_same_number_of_experts() -> None:
    def kept(*ids: int) -> dict[str, Any]:
        return layer_fields(3, num_kept=4, experts={"kept": list(ids)})

    assert map_of(kept(0, 3, 4, 7), num_groups=2).num_groups == 2
    rule = "layer 3: all 2 router groups must keep the same number of experts, in order"
    for broken in (kept(0, 1, 3, 7), kept(0, 1, 2, 3), kept(4, 7, 0, 3)):
        with pytest.raises(PruneError, match=rule):
            map_of(broken, num_groups=2)
    with pytest.raises(PruneError, match="layer 3: a router with 3 groups needs kept ids"):
        map_of(kept(0, 3, 4, 7), num_groups=3)


def test_a_layer_appears_once() -> None:
    with pytest.raises(PruneError, match=r"^routing map: layer 4 appears twice$"):
        map_of(layer_fields(4), layer_fields(4))


def with_base(**changes: str) -> BaseFingerprint:
    return BASE.model_copy(update=changes)


BASES: list[tuple[BaseFingerprint, dict[int, int], str]] = [
    (BASE, {0: 8, 1: 8}, "routing map says nothing of layer 1, which has experts"),
    (BASE, {}, "routing map has layer 0, where the model has no experts"),
    (BASE, {0: 16}, "routing map is for 8 experts in layer 0, the model has 16"),
    *(
        (
            with_base(**{field: "sha256:other"}),
            {0: 8},
            f"routing map was made for another base (tiny): the {field} hash differs",
        )
        for field in ("config", "index", "routers")
    ),
]


@pytest.mark.parametrize(("base", "experts", "message"), BASES, ids=[b[2] for b in BASES])
def test_another_base_is_refused(
    base: BaseFingerprint, experts: dict[int, int], message: str
) -> None:
    with pytest.raises(PruneError) as caught:
        map_of().check_base(base, experts)
    assert caught.value.message == message


def test_allow_other_base_forgives_hashes_but_no_counts() -> None:
    other = with_base(config="x", index="y", routers="z")
    map_of().check_base(other, {0: 8}, allow_other=True)
    map_of().check_base(with_base(name="moved"), {0: 8})
    with pytest.raises(PruneError, match="the model has 16"):
        map_of().check_base(other, {0: 16}, allow_other=True)
