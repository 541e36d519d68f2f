"""Blends of domains against one domain of all text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.calibration import naive
from tests.calibration.naive import Pass
from tests.calibration.passes import accumulate
from tests.calibration.score_samples import EXPERTS, TOKENS, make_scores, passes
from vllm_moe_prune.errors import PruneError

SCORES = make_scores()


def joined(runs: list[Pass]) -> Pass:
    """Return one pass over the tokens of all, one after the other."""
    names = ("token_ids", "logits", "scores", "weights", "ids")
    return Pass(
        vocab=runs[0].vocab,
        outputs=[np.concatenate(parts) for parts in zip(*(r.outputs for r in runs), strict=True)],
        **{name: np.concatenate([getattr(run, name) for run in runs]) for name in names},
    )


def test_pooled_domains_equal_one_domain_of_all_text() -> None:
    runs = passes()
    for layer, evidence in make_scores(gradients=False).evidence().items():
        whole = accumulate(joined([runs[domain][layer] for domain in TOKENS])).finish(0)
        own = sum(naive.outliers(o) for d in TOKENS for o in runs[d][layer].outputs)
        assert evidence.seen.outliers.sum() == own  # each against its own domain
        naive.assert_same(replace(evidence.seen, outliers=whole.outliers), whole, rtol=1e-9)
        assert (evidence.layer, evidence.top_k) == (layer, 2)


def test_whole_weights_equal_repeated_text() -> None:
    """Of 160 tokens, 5 x 50 of code to 3 x 110 of prose: 250 / 580 and 330 / 580 of them."""
    runs, scores = passes(), make_scores(gradients=False)
    found = scores.evidence({"code": 5 * 50, "prose": 3 * 110})
    for layer in EXPERTS:
        text = joined([runs["code"][layer]] * 5 + [runs["prose"][layer]] * 3)
        whole, factor = accumulate(text).finish(0), 160 / 580
        seen = found[layer].seen
        assert seen.tokens == pytest.approx(160)
        np.testing.assert_allclose(seen.counts, factor * whole.counts)
        np.testing.assert_allclose(seen.mean, whole.mean)
        np.testing.assert_allclose(seen.deviations, factor * whole.deviations)
        np.testing.assert_allclose(seen.units, factor * whole.units)
        np.testing.assert_allclose(seen.pairs, factor * whole.pairs)
        assert (seen.vocabulary == whole.vocabulary).all()
        assert (seen.peaks == whole.peaks).all()


@given(weights=st.dictionaries(st.sampled_from(sorted(TOKENS)), st.floats(0.01, 100), min_size=1))
@settings(deadline=None, max_examples=25)
def test_a_domain_stands_for_its_weight(weights: dict[str, float]) -> None:
    found = SCORES.evidence(weights)
    total, tokens = sum(weights.values()), sum(TOKENS[domain] for domain in weights)
    for layer in EXPERTS:
        seen = found[layer].seen
        shares = {domain: weight / total for domain, weight in weights.items()}
        assert seen.tokens == pytest.approx(tokens)
        assert seen.counts.sum() == pytest.approx(2 * tokens)
        parts = {domain: SCORES.domains[domain][layer] for domain in weights}
        expected = sum(shares[d] * p.counts / p.tokens for d, p in parts.items())
        np.testing.assert_allclose(seen.counts / seen.tokens, expected)
        assert seen.gradient is not None
        entropy = sum(shares[d] * p.gradient.entropy for d, p in parts.items() if p.gradient)
        np.testing.assert_allclose(seen.gradient.entropy, entropy)


def test_a_domain_alone_is_itself() -> None:
    for blend in ({"code": 0.3}, {"code": 7, "prose": 0}):
        for layer, evidence in SCORES.evidence(blend).items():
            assert evidence.seen is SCORES.domains["code"][layer]


def test_weights_like_the_tokens_pool() -> None:
    pooled = SCORES.evidence()
    for layer, evidence in SCORES.evidence(TOKENS).items():
        naive.assert_same(evidence.seen, pooled[layer].seen, rtol=1e-12)


def test_a_domain_without_gradients_leaves_the_blend_without() -> None:
    bare = make_scores(gradients=False).domains["code"]
    mixed = replace(SCORES, domains={**SCORES.domains, "code": bare})
    assert SCORES.evidence()[1].seen.gradient is not None
    assert mixed.evidence()[1].seen.gradient is None
    assert mixed.evidence({"prose": 1, "sums": 1})[1].seen.gradient is not None


@pytest.mark.parametrize(
    ("blend", "message"),
    [
        ({"cod": 1.0}, r"no scores of domain 'cod' \(hint: the scores have code, prose, sums\)"),
        ({"code": -1.0, "prose": 2.0}, "domain code has weight -1.0"),
        ({"code": float("nan")}, "domain code has weight nan"),
        ({"code": 0.0}, "no domain has a weight above 0 .*code, prose, sums"),
        ({}, "no domain has a weight above 0"),
    ],
)
def test_wrong_blends(blend: Mapping[str, float], message: str) -> None:
    with pytest.raises(PruneError, match=message):
        SCORES.evidence(blend)
