"""Every criterion equals its definition, spelled out token by token."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from offline.criteria.registry import CRITERIA, values_of
from tests.criteria.samples import Array, Sample, evidence_of, sample
from vllm_moe_prune.errors import PruneError

SAMPLES = {
    "plain": sample(1),
    "an expert without tokens": sample(2, never=(3,)),
    "an expert with one token": sample(3, once=2),
    "top-1": sample(4, top_k=1),
}


def cosine(one: Array, other: Array) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def eas(layer: Sample, p: int) -> float:
    total = 0.0
    for q in range(layer.num_experts):
        pairs = list(itertools.product(layer.activations(p), layer.activations(q)))
        if q != p and pairs:
            total += sum(cosine(one, other) for one, other in pairs) / len(pairs)
    return total


def eae(layer: Sample, p: int) -> float:
    a = layer.activations(p)
    stds = a.std(axis=0) if len(a) > 1 else np.zeros(a.shape[1])
    return sum(math.log(max(std, 1e-8)) for std in stds)


def ean(layer: Sample, p: int) -> float:
    a = layer.activations(p)
    return sum(math.sqrt(sum(value**2 for value in a[:, j])) for j in range(a.shape[1]))


def token_sum(layer: Sample, p: int) -> float:
    return sum(math.sqrt(sum(row**2)) for row in layer.activations(p))


def reap(layer: Sample, p: int) -> float:
    norms = [math.sqrt(sum(row**2)) for row in layer.activations(p)]
    products = [n * g for n, g in zip(norms, layer.weights(p), strict=True)]
    return sum(products) / len(products) if products else 0.0


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def ids(layer: Sample, p: int) -> set[int]:
    return {int(layer.token_ids[t]) for t in layer.own(p)}


NAIVE = {
    "euf": lambda layer, p: sum(p in row for row in layer.ids.tolist()),
    "evtc": lambda layer, p: len(ids(layer, p)) / layer.vocab,
    "weighted_frequency": lambda layer, p: sum(layer.gates[layer.ids == p]),
    "soft_activation": lambda layer, p: sum(layer.scores[:, p]),
    "eas": eas,
    "eae": eae,
    "ean": ean,
    "ean_token_sum": token_sum,
    "reap": reap,
    "man": lambda layer, p: mean([math.sqrt(sum(row**2)) for row in layer.activations(p)]),
    "msan": lambda layer, p: mean([sum(row**2) for row in layer.activations(p)]),
}
NAIVE_PAIRS = {
    "ecc": lambda layer, p, q: sum(p in row and q in row for row in layer.ids.tolist()),
    "ets": lambda layer, p, q: len(ids(layer, p) & ids(layer, q)),
}
# What calibration hands over ready to use, or, of a similarity, as a matrix.
READY = {
    "rwn": lambda e: e.weights.router_norm,
    "wsr": lambda e: e.weights.stable_rank,
    "ewn": lambda e: e.weights.norm,
    "aimer": lambda e: e.weights.flatness,
    "eao": lambda e: e.seen.outliers,
    "ege": lambda e: e.seen.gradient.entropy,
    "ego": lambda e: e.seen.gradient.outliers,
    "egn": lambda e: e.seen.gradient.norm,
}
MATRICES = {
    "ews": lambda e: e.weights.similarity,
    "egs": lambda e: e.seen.gradient.similarity,
}


def test_every_criterion_is_tested_here() -> None:
    assert {*NAIVE, *NAIVE_PAIRS, *READY, *MATRICES} == set(CRITERIA)


def test_the_sixteen_of_the_paper_are_there_with_its_directions() -> None:
    better = {name: one.better for name, one in CRITERIA.items()}
    assert len(CRITERIA) == 23
    paper = {name for name, one in CRITERIA.items() if "2504.05586" in one.source}
    assert len(paper) == 16
    assert {name for name in paper if better[name] == "max"} == {
        *("ews", "rwn", "wsr", "ecc", "ets", "eas", "egs")
    }
    reconstructed = {name for name, one in CRITERIA.items() if one.grounds == "our reading"}
    assert reconstructed == {
        *("ewn", "eao", "egs", "ego", "egn"),
        *("ean_token_sum", "weighted_frequency"),
    }
    assert {better[name] for name in set(CRITERIA) - paper - {"aimer"}} == {"min"}
    assert better["aimer"] == "max"
    assert all(one.meaning and one.formula for one in CRITERIA.values())


@pytest.mark.parametrize("layer", SAMPLES.values(), ids=SAMPLES)
@pytest.mark.parametrize("name", NAIVE)
def test_a_criterion_of_experts_equals_its_definition(name: str, layer: Sample) -> None:
    expected = [NAIVE[name](layer, p) for p in range(layer.num_experts)]
    found = values_of(name, evidence_of(layer))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layer", SAMPLES.values(), ids=SAMPLES)
@pytest.mark.parametrize("name", NAIVE_PAIRS)
def test_a_criterion_of_pairs_equals_its_definition(name: str, layer: Sample) -> None:
    found = values_of(name, evidence_of(layer))
    for p, q in itertools.permutations(range(layer.num_experts), 2):
        assert found[p, q] == NAIVE_PAIRS[name](layer, p, q)


@pytest.mark.parametrize("name", READY)
def test_ready_statistics_are_taken_as_they_are(name: str) -> None:
    evidence = evidence_of(SAMPLES["plain"])
    np.testing.assert_array_equal(values_of(name, evidence), READY[name](evidence))


@pytest.mark.parametrize("name", MATRICES)
def test_a_similarity_is_summed_over_the_other_experts(name: str) -> None:
    evidence = evidence_of(SAMPLES["plain"])
    matrix = MATRICES[name](evidence)
    expected = [sum(matrix[p, q] for q in range(6) if q != p) for p in range(6)]
    np.testing.assert_allclose(values_of(name, evidence), expected)


@pytest.mark.parametrize("name", [name for name, one in CRITERIA.items() if one.needs_gradients])
def test_scores_without_gradients_are_refused_with_the_command_that_makes_them(name: str) -> None:
    with pytest.raises(PruneError, match="needs gradients") as caught:
        values_of(name, evidence_of(SAMPLES["plain"], gradients=False))
    assert caught.value.hint is not None and "vmprune score --gradients" in caught.value.hint
