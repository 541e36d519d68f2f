"""What is minimised, against loops over single tokens in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offline.engines import reading
from offline.finetune.losses import divergence
from tests.finetune.samples import listed_of


def naive(
    logits: list[float], tokens: list[int], log_probs: list[float]
) -> tuple[float, list[float]]:
    """Return KL(teacher || model) of one place and its gradient, both by their definitions."""
    most = max(logits)
    whole = math.fsum(math.exp(x - most) for x in logits)
    q = [math.exp(x - most) / whole for x in logits]
    p = dict(zip(tokens, map(math.exp, log_probs), strict=True))
    others = [token for token in range(len(q)) if token not in p]
    rest_p = max(1 - math.fsum(p.values()), 0.0) if others else 0.0
    rest_q = math.fsum(q[token] for token in others)
    total = math.fsum(p[token] * (math.log(p[token]) - math.log(q[token])) for token in tokens)
    if rest_p > 0:
        total += rest_p * (math.log(rest_p) - math.log(rest_q))
    seen = math.fsum(p.values()) + rest_p
    gradient = [
        q[token] * seen - (p[token] if token in p else rest_p * q[token] / rest_q)
        for token in range(len(q))
    ]
    return total, gradient


@given(
    places=st.integers(1, 4),
    vocab=st.integers(2, 20),
    listed=st.integers(1, 20),
    spread=st.sampled_from([0.1, 1.0, 5.0, 25.0]),
    seed=st.integers(0, 2**31),
)
def test_the_divergence_and_its_gradient_are_the_naive_ones(
    places: int, vocab: int, listed: int, spread: float, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    teacher, own = (
        spread * torch.randn(places, vocab, generator=rng, dtype=torch.float64) for _ in range(2)
    )
    tokens, log_probs = listed_of(teacher, min(listed, vocab))
    logits = own.clone().requires_grad_()
    found = divergence(logits, tokens, log_probs)
    found.backward()  # type: ignore[no-untyped-call]
    wanted = [
        naive(*row) for row in zip(own.tolist(), tokens.tolist(), log_probs.tolist(), strict=True)
    ]
    assert float(found.detach()) == pytest.approx(
        math.fsum(one for one, _ in wanted), rel=1e-9, abs=1e-9
    )
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad, [row for _, row in wanted], atol=1e-9)


@given(spread=st.sampled_from([1.0, 30.0, 300.0]), seed=st.integers(0, 2**31))
def test_a_model_that_is_sure_has_gradients_too(spread: float, seed: int) -> None:
    """In float32 one less what is listed would be 0 here, and its logarithm no number."""
    rng = torch.Generator().manual_seed(seed)
    teacher, own = (spread * torch.randn(3, 50, generator=rng) for _ in range(2))
    logits = own.clone().requires_grad_()
    found = divergence(logits, *listed_of(teacher, 8))
    found.backward()  # type: ignore[no-untyped-call]
    assert -1e-4 * spread <= float(found.detach()) < math.inf
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


@given(seed=st.integers(0, 2**31), listed=st.integers(1, 30))
def test_it_is_what_an_agreement_is_measured_by(seed: int, listed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    teacher, own = (2 * torch.randn(4, 30, generator=rng) for _ in range(2))
    tokens, log_probs = listed_of(teacher, listed)
    nothing = np.zeros(4)
    base, other = (
        reading.Reading(
            nothing,
            nothing.astype(np.float32),
            tokens.numpy().astype(np.int32),
            one.log_softmax(-1).gather(1, tokens).numpy(),
        )
        for one in (teacher, own)
    )
    assert float(divergence(own, tokens, log_probs)) == pytest.approx(
        reading.divergence(base, other).sum(), rel=1e-4, abs=1e-5
    )
    assert float(divergence(teacher, tokens, log_probs)) == pytest.approx(0, abs=1e-5)
