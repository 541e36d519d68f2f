"""Random maps, the most used experts, and the budget they have to fit."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from offline.methods.baselines import most_used, random_kept
from tests.offline.test_eep import space_of
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import Provenance


def test_the_most_used_experts_stay_in_order_of_id() -> None:
    usage = {0: [5, 90, 7, 90, 1, 8, 30, 2], 1: [8, 7, 6, 5, 4, 3, 2, 1]}
    assert most_used(space_of(layers=2), usage) == {0: (1, 3, 5, 6), 1: (0, 1, 2, 3)}


def test_a_tie_keeps_the_lower_id() -> None:
    assert most_used(space_of(layers=1, keep=2), {0: [3, 3, 3, 3, 0, 0, 0, 9]}) == {0: (0, 7)}


def test_random_maps_keep_every_expert_equally_often() -> None:
    space, rng = space_of(layers=2, keep=2), random.Random(0)
    draws = [random_kept(space, rng) for _ in range(2000)]
    for layer in space.layers:
        counts = Counter(expert for kept in draws for expert in kept[layer])
        assert set(counts) == set(range(8))
        assert all(abs(count - 500) < 100 for count in counts.values())  # 5 standard deviations
        assert all(kept[layer][0] < kept[layer][1] for kept in draws)
    assert any(kept[0] != kept[1] for kept in draws)


def test_the_same_seed_draws_the_same_random_map() -> None:
    space = space_of()
    assert random_kept(space, random.Random(1)) == random_kept(space, random.Random(1))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (9, "--keep 9: layer 0 has 8 experts"),
        (0, "--keep 0: layer 0 has 8 experts"),
    ],
)
def test_a_budget_that_no_layer_can_hold_is_refused(keep: int, message: str) -> None:
    with pytest.raises(PruneError) as caught:
        space_of(keep=keep)
    assert caught.value.message == message


def test_a_space_makes_sliced_one_hot_maps_with_sorted_ids() -> None:
    space = space_of(layers=2, keep=2)
    routing_map = space.routing_map(
        {0: (5, 1), 1: (0, 7)}, Provenance(method="random"), {0: [1] * 8, 1: [2] * 8}
    )
    assert [layer.experts.kept for layer in routing_map.layers] == [(1, 5), (0, 7)]
    assert routing_map.form == "plain"
    assert routing_map.tokens_seen == {0: (1,) * 8, 1: (2,) * 8}
    assert {layer.top_k for layer in routing_map.layers} == {1}
