"""In which order experts go: directions, ties, experts never seen, and the rule of pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.criteria.order import DropOrder, order_of, pair_order
from offline.criteria.registry import CRITERIA, Rule
from tests.criteria.samples import Array, evidence_of, permuted, sample
from vllm_moe_prune.errors import PruneError

SINGLE = [name for name, one in CRITERIA.items() if not one.of_pairs]
NONE = np.zeros(4, bool)


def test_words_carry_a_direction_and_a_bare_name_takes_the_better_one() -> None:
    assert Rule.parse("min-ean") == Rule("ean", "min")
    assert Rule.parse(" MAX-ean-token-sum ") == Rule("ean_token_sum", "max")
    assert Rule.parse("rwn").word == "max-rwn"


@pytest.mark.parametrize("word", ["", "min-", "magic", "least-ean", "min-min-ean"])
def test_an_unknown_word_is_named(word: str) -> None:
    with pytest.raises(PruneError, match="unknown criterion") as caught:
        Rule.parse(word)
    assert repr(word) in caught.value.message


def test_the_lowest_goes_first_and_of_equals_the_higher_id() -> None:
    values = np.array([2.0, 1.0, 2.0, 0.5])
    assert order_of(values, "min", NONE).experts == (3, 1, 2, 0)
    assert order_of(values, "max", NONE).experts == (2, 0, 1, 3)


@pytest.mark.parametrize("direction", ["min", "max"])
def test_what_nothing_is_known_of_goes_first_either_way(direction: str) -> None:
    unseen = np.array([False, True, False, False])
    order = order_of(np.array([2.0, 1.0, 3.0, 0.5]), direction, unseen)
    assert order.experts[0] == 1
    assert order.importance[1] == 0


@pytest.mark.parametrize("name", [name for name, one in CRITERIA.items() if one.needs_tokens])
@pytest.mark.parametrize("direction", ["min", "max"])
def test_an_expert_never_seen_is_not_kept_by_what_it_never_showed(
    name: str, direction: str
) -> None:
    evidence = evidence_of(sample(5, never=(2, 4)))
    assert set(Rule(name, direction).order(evidence).experts[:2]) == {2, 4}


@pytest.mark.parametrize("name", ["euf", "evtc", "weighted_frequency"])
def test_no_token_is_the_least_that_an_expert_can_get(name: str) -> None:
    evidence = evidence_of(sample(5, never=(2, 4)))
    assert set(Rule(name, "min").order(evidence).experts[:2]) == {2, 4}
    assert set(Rule(name, "max").order(evidence).experts[-2:]) == {2, 4}


def test_importance_is_the_share_of_the_layer() -> None:
    values = np.array([1.0, 3.0, 4.0, 0.0])
    np.testing.assert_allclose(order_of(values, "min", NONE).importance, values / 8)
    mirrored = order_of(values, "max", NONE).importance
    np.testing.assert_allclose(mirrored, np.array([3.0, 1.0, 0.0, 4.0]) / 8)
    shifted = order_of(values - 2, "min", NONE).importance
    np.testing.assert_allclose(shifted, values / 8)
    np.testing.assert_allclose(order_of(values * 0, "min", NONE).importance, [0.25] * 4)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(SINGLE))
def test_min_and_max_are_opposite_orders_without_ties(seed: int, name: str) -> None:
    layer = evidence_of(sample(seed, tokens=200), seed)
    values = CRITERIA[name].function(layer)
    if len(set(values.tolist())) < len(values) or (layer.seen.counts == 0).any():
        return
    down, up = (Rule(name, way).order(layer).experts for way in ("min", "max"))
    assert down == up[::-1]
    assert down == tuple(np.argsort(values))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9),
    st.sampled_from(["min", "max"]),
    st.data(),
)
def test_importance_never_falls_along_the_order(
    values: list[float], direction: str, data: st.DataObject
) -> None:
    unseen = np.array(
        data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    )
    order = order_of(np.array(values), direction, unseen)
    along = order.importance[list(order.experts)]
    assert (np.diff(along) >= 0).all()
    assert (along >= 0).all() and along.sum() == pytest.approx(1)


def matrix(**values: int) -> Array:
    """A symmetric matrix of four experts: p01=3 is the value of experts 0 and 1."""
    found = np.zeros((4, 4))
    for name, value in values.items():
        p, q = int(name[1]), int(name[2])
        found[p, q] = found[q, p] = value
    return found


PAIRS = matrix(p01=9, p02=1, p03=4, p12=2, p13=8, p23=3)


def test_of_the_highest_pair_the_less_used_one_goes() -> None:
    # 0-1 is highest: 0 goes (20 < 30). Left 1-2: 2, 1-3: 8, 2-3: 3: of 1-3, 3 goes. Then of 1-2, 1.
    usage = np.array([20.0, 30.0, 40.0, 10.0])
    assert pair_order(PAIRS, "max", usage, NONE).experts == (0, 3, 1, 2)


def test_of_the_lowest_pair_the_less_used_one_goes() -> None:
    # 0-2 is lowest: 0 goes. Left 1-2: 2: 1 goes (30 < 40). Then of 2-3, 3.
    usage = np.array([20.0, 30.0, 40.0, 10.0])
    assert pair_order(PAIRS, "min", usage, NONE).experts == (0, 1, 3, 2)


def test_ties_of_pairs_and_of_usage_take_the_lowest_ids() -> None:
    usage = np.full(4, 7.0)
    assert pair_order(matrix(), "max", usage, NONE).experts == (0, 1, 2, 3)
    assert pair_order(matrix(p13=5, p23=5), "max", usage, NONE).experts == (1, 2, 0, 3)


def test_the_diagonal_is_not_looked_at() -> None:
    usage = np.array([20.0, 30.0, 40.0, 10.0])
    with_self = PAIRS + 100 * np.eye(4)
    assert pair_order(with_self, "max", usage, NONE).experts == (0, 3, 1, 2)


def test_of_a_pair_the_other_one_goes_where_one_is_protected() -> None:
    usage = np.array([20.0, 30.0, 40.0, 10.0])
    # 0-1: 0 is protected, so 1 goes. Left 0-2: 1, 0-3: 4, 2-3: 3: 3 goes, then 2.
    assert pair_order(PAIRS, "max", usage, NONE, {0}).experts == (1, 3, 2, 0)
    assert pair_order(PAIRS, "max", usage, NONE, {0, 1}).experts == (3, 2, 0, 1)


def test_an_expert_of_no_pair_goes_first_where_it_saw_no_token() -> None:
    usage = np.array([20.0, 30.0, 0.0, 10.0])
    unseen = usage == 0
    pairs = matrix(p01=9, p03=4, p13=8)
    assert pair_order(pairs, "max", usage, unseen).experts == (2, 0, 3, 1)
    assert pair_order(pairs, "min", usage, unseen).experts == (2, 3, 0, 1)


def test_a_step_of_pairs_counts_what_the_pair_did() -> None:
    usage = np.array([20.0, 30.0, 40.0, 10.0])
    order = pair_order(PAIRS, "max", usage, NONE)  # steps of 9, 8, 2; the last one as the third
    np.testing.assert_allclose(order.importance, np.array([2, 9, 9, 3]) / 23)
    assert (np.diff(order.importance[list(order.experts)]) >= 0).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["min", "max"]))
def test_pairs_follow_the_rule_spelled_out(seed: int, way: str) -> None:
    rng = np.random.default_rng(seed)
    values = np.triu(rng.integers(0, 6, (7, 7)), 1).astype(float)
    values += values.T
    usage = rng.integers(0, 4, 7).astype(float)
    left, expected = list(range(7)), []
    while len(left) > 1:
        pairs = [(p, q) for p in left for q in left if p < q]
        best = (max if way == "max" else min)(values[pair] for pair in pairs)
        pair = next(pair for pair in pairs if values[pair] == best)
        gone = min(pair, key=lambda p: (usage[p], p))
        expected.append(gone)
        left.remove(gone)
    found = pair_order(values, way, usage, np.zeros(7, bool))
    assert found.experts == (*expected, *left)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(SINGLE), st.permutations(range(6)))
def test_renumbering_experts_renumbers_the_order(seed: int, name: str, new: list[int]) -> None:
    layer, numbers = evidence_of(sample(seed), seed), np.array(new)
    values = CRITERIA[name].function(layer)
    if len(set(np.round(values, 9).tolist())) < 6:
        return
    rule = Rule.parse(name)
    moved = rule.order(permuted(layer, numbers)).experts
    assert tuple(numbers[list(moved)].tolist()) == rule.order(layer).experts


def test_renumbering_experts_renumbers_the_order_of_pairs_without_ties() -> None:
    layer = evidence_of(sample(3, experts=4, tokens=400))
    usage = np.array([20.0, 30.0, 40.0, 10.0])
    layer = replace(layer, seen=replace(layer.seen, pairs=PAIRS, counts=usage))
    numbers = np.array([2, 0, 3, 1])
    moved = Rule.parse("max-ecc").order(permuted(layer, numbers)).experts
    assert tuple(numbers[list(moved)].tolist()) == Rule.parse("max-ecc").order(layer).experts


def test_a_layer_without_tokens_and_values_that_are_not_finite_are_refused() -> None:
    layer = evidence_of(sample(1), 7)
    silent = replace(layer, seen=replace(layer.seen, tokens=0.0))
    with pytest.raises(PruneError, match="layer 7 saw no token"):
        Rule.parse("ews").order(silent)
    norms = layer.seen.norms.copy()
    norms[3] = np.inf
    broken = replace(layer, seen=replace(layer.seen, norms=norms))
    with pytest.raises(PruneError, match="layer 7: criterion ean_token_sum of expert 3 is not fin"):
        Rule.parse("ean_token_sum").order(broken)


@given(st.permutations(range(6)), st.integers(1, 6), st.sets(st.integers(0, 5)))
def test_the_last_ones_are_kept_and_the_protected(
    order: list[int], count: int, protected: set[int]
) -> None:
    if len(protected) > count:
        return
    kept = DropOrder(tuple(order), np.full(6, 1 / 6)).kept(count, protected)
    assert len(kept) == count and protected <= set(kept)
    dropped = [e for e in order if e not in kept]
    free = [e for e in order if e not in protected]
    assert dropped == free[: len(dropped)]
