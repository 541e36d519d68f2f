"""Merging baselines: which experts become one, with which weights, and what the model computes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import scipy.cluster.hierarchy  # noqa: F401  # slow to import: not within a test's deadline
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from offline.calibration.statistics import LayerEvidence, LayerStatistics
from offline.engines.local.transformers import TransformersEngine
from offline.maps.map_space import Space
from offline.maps.moe_shape import MoeShape
from offline.methods.merging import (
    CLUSTERINGS,
    MergeKind,
    MergeRouter,
    merged_coefficients,
    merged_map,
    output_clusters,
    router_clusters,
)
from tests.analysis.samples import evidence, routed
from tests.sample_shapes import shape_of
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap

BY_HAND = Provenance(method="by hand")
KINDS = sorted(CLUSTERINGS)


def space_of(experts: dict[int, int], top_k: int = 2, **more: Any) -> Space:
    return Space.of(shape_of(experts, top_k, **more))


def seen_as(counts: list[float], **changes: Any) -> LayerStatistics:
    base = routed(experts=len(counts)).statistics()
    fields = {"counts": np.array(counts, float), "scores": np.array(counts, float), **changes}
    return dataclasses.replace(base, **fields)


def directions(*degrees: float) -> np.ndarray:
    """Return vectors in a plane, of different lengths: only their direction may matter."""
    angle = np.radians(degrees)
    lengths = np.arange(1, len(degrees) + 1)[:, None]
    return np.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1) * lengths)


@given(
    st.integers(0, 10_000),
    st.integers(1, 9),
    st.sampled_from(KINDS),
    st.sampled_from(["sum", "dominant"]),
    st.data(),
)
def test_clusters_are_a_partition_and_rows_sum_to_one(
    seed: int, experts: int, kind: MergeKind, router: MergeRouter, data: st.DataObject
) -> None:
    never = data.draw(st.sets(st.integers(0, experts - 1), max_size=experts - 1))
    count = data.draw(st.integers(1, experts))
    seen = routed(seed, tokens=30, experts=experts, top_k=1, never=sorted(never)).statistics()
    clusters = CLUSTERINGS[kind](seen, count)
    assert len(clusters) == count
    assert all(clusters)
    assert sorted(expert for part in clusters for expert in part) == list(range(experts))
    found = merged_coefficients(clusters, seen.counts, router)
    np.testing.assert_allclose(found.experts.sum(axis=1), 1, rtol=1e-6)
    assert (found.experts >= 0).all()
    columns = found.router.sum(axis=0)
    assert set(np.unique(found.router)) <= {0, 1}
    if router == "sum":
        np.testing.assert_array_equal(columns, np.ones(experts))
        np.testing.assert_array_equal(found.router.sum(axis=1), [len(part) for part in clusters])
    else:
        np.testing.assert_array_equal(found.router.sum(axis=1), np.ones(count))
        for part, row in zip(clusters, found.router, strict=True):
            assert seen.counts[row.argmax()] == seen.counts[list(part)].max()


@given(st.integers(0, 10_000), st.sampled_from(KINDS))
def test_all_kept_is_the_identity(seed: int, kind: MergeKind) -> None:
    seen = routed(seed, tokens=20).statistics()
    found = merged_coefficients(CLUSTERINGS[kind](seen, 6), seen.counts)
    np.testing.assert_array_equal(found.experts, np.eye(6))
    np.testing.assert_array_equal(found.router, np.eye(6))


def test_experts_of_the_same_output_are_merged_first() -> None:
    seen = routed(3, experts=6).statistics()
    mean = seen.mean.copy()
    mean[5] = 3 * mean[1]  # longer, and of the same direction
    clusters = output_clusters(dataclasses.replace(seen, mean=mean), 5)
    assert clusters == ((0,), (1, 5), (2,), (3,), (4,))


def test_linkage_is_the_average_one() -> None:
    """Chains tell linkages apart: the nearest pair of ends would join all of the first four."""
    seen = seen_as([5] * 6, mean=directions(0, 20, 40, 60, 85, 110))
    assert output_clusters(seen, 5) == ((0, 1), (2,), (3,), (4,), (5,))
    assert output_clusters(seen, 3) == ((0, 1), (2, 3), (4, 5))
    # then 0-20 to 40-60 (means of 0.24) before 40-60 to 85-110 (means of 0.40)
    assert output_clusters(seen, 2) == ((0, 1, 2, 3), (4, 5))


def test_equal_distances_leave_exactly_as_many_as_asked() -> None:
    seen = seen_as([1] * 5, mean=np.eye(5))
    assert [len(output_clusters(seen, count)) for count in range(1, 6)] == [1, 2, 3, 4, 5]
    same = seen_as([1] * 5, mean=np.ones((5, 3)))
    assert [len(output_clusters(same, count)) for count in range(1, 6)] == [1, 2, 3, 4, 5]


def test_an_expert_without_output_joins_by_its_router_and_adds_no_weight() -> None:
    gram = np.eye(4)
    gram[3, 1] = gram[1, 3] = 0.9
    seen = seen_as([4, 6, 5, 0], mean=directions(0, 60, 10, 0), logit_gram=gram)
    clusters = output_clusters(seen, 2)
    assert clusters == ((0, 2), (1, 3))
    np.testing.assert_allclose(
        merged_coefficients(clusters, seen.counts).experts, [[4 / 9, 0, 5 / 9, 0], [0, 1, 0, 0]]
    )


def test_unseen_experts_fill_up_by_their_scores() -> None:
    seen = seen_as([9, 0, 0, 0], scores=np.array([5, 0.1, 0.3, 0.2]), logit_gram=np.eye(4))
    assert output_clusters(seen, 3) == ((0, 1), (2,), (3,))


def test_the_most_used_experts_dominate_and_others_join_the_nearest_router() -> None:
    angle = directions(0, 80, 75, 10, 100)
    seen = seen_as([9, 8, 1, 2, 3], logit_gram=angle @ angle.T)
    assert router_clusters(seen, 2) == ((0, 3), (1, 2, 4))
    assert router_clusters(seen, 3) == ((0, 3), (1, 2), (4,))
    equal = seen_as([1, 1, 1, 1, 1], logit_gram=angle @ angle.T)
    assert router_clusters(equal, 1) == ((0, 1, 2, 3, 4),)
    assert {part[0] for part in router_clusters(equal, 2)} == {0, 1}


def test_members_weigh_as_often_as_they_are_used() -> None:
    counts = np.array([30.0, 0, 10, 0, 0])
    found = merged_coefficients(((0, 2), (1, 4), (3,)), counts)
    expected = [[0.75, 0, 0.25, 0, 0], [0, 0.5, 0, 0, 0.5], [0, 0, 0, 1, 0]]
    np.testing.assert_allclose(found.experts, expected)
    np.testing.assert_array_equal(found.router, [[1, 0, 1, 0, 0], [0, 1, 0, 0, 1], [0, 0, 0, 1, 0]])
    dominant = merged_coefficients(((0, 2), (1, 4), (3,)), counts, "dominant")
    np.testing.assert_array_equal(dominant.router, np.eye(5)[[0, 1, 3]])
    np.testing.assert_array_equal(dominant.experts, found.experts)


@pytest.mark.parametrize("kind", KINDS)
def test_the_map_validates_and_shrinks_every_layer(kind: MergeKind) -> None:
    found = evidence((1, 2, 5))
    space = space_of({1: 6, 2: 6, 5: 6})
    keep = {1: 2, 2: 3, 5: 6}
    made = merged_map(space, found, keep, kind, "sum", BY_HAND)
    assert {layer.layer: layer.num_kept for layer in made.layers} == keep
    assert [layer.router for layer in made.layers] == ["mapped", "mapped", "sliced"]
    whole = made.layers[2]
    assert whole.experts.kept == whole.router_selection.kept == tuple(range(6))
    assert made.form == "compact"
    assert made.tokens_seen is not None
    assert sum(made.tokens_seen[1]) == 400
    layer = made.layers[0]
    rows = made.expert_matrix(layer)
    clusters = [np.flatnonzero(row) for row in rows]
    counts = found[1].seen.counts
    for row, members in zip(rows, clusters, strict=True):
        np.testing.assert_allclose(row[members], counts[members] / counts[members].sum(), 1e-6)


def test_dominant_routers_make_a_plain_file() -> None:
    space = space_of({0: 6, 1: 6})
    made = merged_map(space, evidence(), {0: 3, 1: 3}, "output-similarity", "dominant", BY_HAND)
    assert made.form == "plain"
    assert {layer.router for layer in made.layers} == {"sliced"}
    plain = space_of({0: 6, 1: 6}, slices=False)
    mapped = merged_map(plain, evidence(), {0: 3, 1: 3}, "output-similarity", "dominant", BY_HAND)
    assert {layer.router for layer in mapped.layers} == {"mapped"}


@pytest.mark.parametrize(
    ("found", "keep", "said"),
    [
        (evidence((0,)), {0: 3, 1: 3}, "layer 1 was not scored"),
        (evidence((0, 1)), {0: 3, 1: 1}, "layer 1 cannot keep 1 of 6 experts with top-k 2"),
        (evidence((0, 1)), {0: 7, 1: 3}, "layer 0 cannot keep 7 of 6 experts"),
        (evidence((0, 1), experts=8), {0: 3, 1: 3}, "layer 0 has 6 experts, but 8 were scored"),
    ],
)
def test_what_does_not_fit_is_named(
    found: dict[int, LayerEvidence], keep: dict[int, int], said: str
) -> None:
    with pytest.raises(PruneError, match=re.escape(said)):
        merged_map(space_of({0: 6, 1: 6}), found, keep, "router-similarity", "sum", BY_HAND)


def test_a_layer_without_tokens_is_an_error() -> None:
    found = evidence((0,))
    silent = dataclasses.replace(found[0], seen=dataclasses.replace(found[0].seen, tokens=0.0))
    with pytest.raises(PruneError, match="layer 0 saw no token"):
        merged_map(space_of({0: 6}), {0: silent}, {0: 3}, "output-similarity", "sum", BY_HAND)


def test_a_router_that_cannot_act_on_merged_experts_is_an_error() -> None:
    found, keep = evidence((0,)), {0: 4}
    for router in ("sum", "dominant"):
        with pytest.raises(PruneError, match="first chooses among 2 groups"):
            grouped = space_of({0: 6}, num_groups=2)
            merged_map(grouped, found, keep, "router-similarity", router, BY_HAND)  # type: ignore[arg-type]
    biased = space_of({0: 6}, mappable=False)
    with pytest.raises(PruneError, match="cannot add up scores"):
        merged_map(biased, found, keep, "router-similarity", "sum", BY_HAND)
    plain = merged_map(biased, found, keep, "router-similarity", "dominant", BY_HAND)
    assert plain.layers[0].router == "sliced"


# --- on a model -----------------------------------------------------------------------------------

PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7))


def twin_model(folder: Path, *, top_k: int, twin_routers: bool) -> TransformersEngine:
    """Make a tiny Mixtral whose experts 2i and 2i+1 have the same weights."""
    make_tiny_mixtral(folder, top_k=top_k)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        found = re.search(r"experts\.(\d)\.", name)
        if found and int(found[1]) % 2:
            tensors[name] = tensors[name.replace(found[0], f"experts.{int(found[1]) - 1}.")]
        if twin_routers and name.endswith("gate.weight"):
            tensors[name] = tensors[name][::2].repeat(2, axis=0)
    save_file({name: array.copy() for name, array in tensors.items()}, file, {"format": "pt"})
    return TransformersEngine(folder, dtype="float32")


def twin_evidence() -> dict[int, LayerEvidence]:
    """Return evidence that shows the twins as such, and that they were not used alike."""
    found = evidence((0, 1), experts=8)
    for layer, shown in found.items():
        mean = shown.seen.mean[::2].repeat(2, axis=0)
        found[layer] = dataclasses.replace(shown, seen=dataclasses.replace(shown.seen, mean=mean))
    return found


def merged(engine: TransformersEngine, top_k: int, router: MergeRouter) -> RoutingMap:
    space = Space.of(MoeShape.of(Checkpoint.open(engine.folder)), top_k=top_k)
    keep = MappingProxyType({0: 4, 1: 4})
    made = merged_map(space, twin_evidence(), keep, "output-similarity", router, BY_HAND)
    for layer in made.layers:
        members = [tuple(np.flatnonzero(row)) for row in made.expert_matrix(layer)]
        assert members == list(PAIRS)
    return made


def logits(engine: TransformersEngine, routing_map: RoutingMap | None) -> torch.Tensor:
    engine.apply(routing_map)
    return engine.logits([list(range(5, 37)), list(range(40, 72))])


def test_duplicates_merge_without_loss_where_all_experts_are_active(tmp_path: Path) -> None:
    """All 8 active: sum_i p_i E_i, and twins' scores add up. Router rows are free."""
    engine = twin_model(tmp_path / "twins", top_k=8, twin_routers=False)
    base = logits(engine, None)
    torch.testing.assert_close(logits(engine, merged(engine, 4, "sum")), base, atol=2e-4, rtol=1e-4)
    # a router that forgets half of the scores does not
    assert not torch.allclose(logits(engine, merged(engine, 4, "dominant")), base, atol=1e-2)


@pytest.mark.parametrize("router", ["sum", "dominant"])
def test_twins_that_are_always_chosen_together_become_one(
    tmp_path: Path, router: MergeRouter
) -> None:
    """Equal router rows: top-2 takes a pair of twins, which is top-1 of the merged experts."""
    engine = twin_model(tmp_path / "twins", top_k=2, twin_routers=True)
    base = logits(engine, None)
    torch.testing.assert_close(
        logits(engine, merged(engine, 1, router)), base, atol=2e-4, rtol=1e-4
    )
    assert not torch.allclose(logits(engine, merged(engine, 2, router)), base, atol=1e-2)
