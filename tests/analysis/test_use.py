"""Balance, router weights, coverage, co-activation and domains against their plain definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.analysis.co_activation import co_activation, lift
from offline.analysis.specialisation import divergence, domain_use
from offline.analysis.use import entropy, entropy_share, use_of
from offline.calibration.statistics import LayerEvidence
from offline.results.balance import coefficient_of_variation, shares
from tests.analysis.samples import Routed, histogram, routed, weight_statistics

SEEDS = st.integers(0, 10_000)


def shown(part: Routed, layer: int = 3, top_k: int = 2) -> LayerEvidence:
    seen = part.statistics()
    return LayerEvidence(layer, top_k, seen, weight_statistics(seen.num_experts))


@given(st.integers(1, 300), st.floats(0.5, 1e6))
def test_even_use(experts: int, count: float) -> None:
    share = shares(np.full(experts, count))
    assert coefficient_of_variation(share) == pytest.approx(0, abs=1e-9)
    assert entropy(share) == pytest.approx(math.log(experts), abs=1e-9)
    assert entropy_share(share) == pytest.approx(1)


@given(st.integers(2, 300))
def test_one_expert_takes_everything(experts: int) -> None:
    counts = np.zeros(experts)
    counts[experts // 2] = 7
    share = shares(counts)
    assert coefficient_of_variation(share) == pytest.approx(math.sqrt(experts - 1))
    assert entropy(share) == 0
    assert math.copysign(1, entropy(share)) == 1
    assert entropy_share(share) == 0


def test_nothing_used_is_nothing_shared() -> None:
    share = shares(np.zeros(4))
    assert (share.tolist(), coefficient_of_variation(share), entropy(share)) == ([0] * 4, 0, 0)


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=20).filter(any))
def test_balance_is_that_of_the_plain_definitions(counts: list[int]) -> None:
    share = shares(np.array(counts, float))
    mean = sum(counts) / len(counts)
    deviation = math.sqrt(sum((c - mean) ** 2 for c in counts) / len(counts))
    assert coefficient_of_variation(share) == pytest.approx(deviation / mean)
    p = [c / sum(counts) for c in counts if c]
    assert entropy(share) == pytest.approx(-sum(x * math.log(x) for x in p), abs=1e-12)
    assert 0 <= entropy_share(share) <= 1 + 1e-12


@given(SEEDS, st.integers(1, 4), st.booleans())
def test_a_layer_is_described_as_its_tokens_went(seed: int, top_k: int, silent: bool) -> None:
    part = routed(seed, tokens=60, top_k=top_k, never=(4,) if silent else ())
    found = use_of(shown(part, top_k=top_k))
    tokens_of = [part.tokens_of(p) for p in range(6)]
    assignments = 60 * top_k
    assert found.share == pytest.approx([len(t) / assignments for t in tokens_of])
    assert sum(found.share) == pytest.approx(1)
    assert found.max_over_mean == pytest.approx(max(map(len, tokens_of)) / (assignments / 6))
    assert found.mean_weight == pytest.approx(part.weights.mean())
    assert found.weight_bins == pytest.approx(histogram(part.weights) / assignments)
    ids = [{*part.token_ids[t].tolist()} for t in tokens_of]
    assert found.coverage == pytest.approx([len(own) / 40 for own in ids])
    assert found.coverage_of_all == pytest.approx(len({*part.token_ids.tolist()}) / 40)
    assert found.unseen == tuple(p for p in range(6) if not len(tokens_of[p]))
    assert (4 in found.unseen) >= silent
    assert (found.layer, found.top_k, found.tokens) == (3, top_k, 60)


def test_experts_keep_the_names_they_are_given() -> None:
    found = use_of(shown(routed(never=(1,), experts=3, top_k=1)), (2, 5, 7))
    assert (found.experts, found.unseen) == ((2, 5, 7), (5,))


@given(SEEDS, st.integers(2, 4))
def test_lift_is_what_is_seen_over_what_use_makes_likely(seed: int, top_k: int) -> None:
    part = routed(seed, tokens=50, top_k=top_k)
    seen = part.statistics()
    pairs = list(itertools.combinations(range(6), 2))
    together = {(p, q): len({*part.tokens_of(p)} & {*part.tokens_of(q)}) for p, q in pairs}
    product = {(p, q): len(part.tokens_of(p)) * len(part.tokens_of(q)) for p, q in pairs}
    scale = sum(together.values()) / sum(product.values())
    found = lift(seen)
    assert np.isnan(np.diagonal(found)).all()
    for p, q in pairs:
        if product[p, q]:
            expected = together[p, q] / (scale * product[p, q])
            assert found[p, q] == pytest.approx(expected)
            assert found[q, p] == pytest.approx(expected)
    strongest = use_of(shown(part, top_k=top_k)).strongest_pair
    assert strongest is not None
    assert strongest.lift == pytest.approx(np.nanmax(found))
    assert strongest.tokens == together[strongest.experts]


def test_experts_that_are_always_chosen_together_are_the_strongest_pair() -> None:
    part = routed(tokens=90)
    ids = np.array([[0, 3], [1, 2], [4, 5]])[np.arange(90) % 3]
    found = co_activation(
        shown(Routed(40, part.token_ids, part.logits, part.scores, ids, part.weights, part.outputs))
    )
    assert found is not None
    # three pairs of fifteen ever meet, all experts are used alike: five times the even share
    assert found.lift[0][3] == pytest.approx(5)
    assert found.lift[0][1] == 0
    assert found.lift[2][2] is None


def test_one_expert_per_token_has_no_company() -> None:
    alone = shown(routed(top_k=1), top_k=1)
    assert use_of(alone).strongest_pair is None
    assert co_activation(alone) is None


def test_divergence_of_known_cases() -> None:
    one, other = np.array([0.5, 0.5, 0, 0]), np.array([0, 0, 0.5, 0.5])
    assert divergence([one, one, one]) == pytest.approx(0, abs=1e-12)
    assert divergence([one, other]) == pytest.approx(1)
    assert divergence([np.eye(3)[0], np.eye(3)[1], np.eye(3)[2]]) == pytest.approx(1)
    assert divergence([one]) is None
    half = np.array([0.5, 0.25, 0.25])
    even = np.array([0.25, 0.5, 0.25])
    mean = (half + even) / 2
    kullback = [float((p * np.log(p / mean)).sum()) for p in (half, even)]
    assert divergence([half, even]) == pytest.approx(sum(kullback) / 2 / math.log(2))


@given(SEEDS)
def test_domains_count_the_same_however_long_they_are(seed: int) -> None:
    long, short = routed(seed, tokens=300), routed(seed + 1, tokens=20)
    found = domain_use(2, {"long": long.statistics(), "short": short.statistics()})
    for name, part in (("long", long), ("short", short)):
        counts = [len(part.tokens_of(p)) for p in range(6)]
        assert found.shares[name] == pytest.approx(np.array(counts) / sum(counts))
    assert found.divergence is not None
    assert 0 <= found.divergence <= 1
    assert found.divergence == divergence([np.array(s) for s in found.shares.values()])
