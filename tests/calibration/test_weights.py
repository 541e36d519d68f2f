"""Statistics of weights and gradients against full decompositions and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from offline.calibration import weights
from offline.calibration.spectral import SMALL, largest_singular_values
from offline.calibration.weights import gradient_statistics, weight_statistics
from tests.calibration import naive

Experts = list[tuple[Tensor, ...]]


def random_experts(
    count: int, *shapes: tuple[int, int], seed: int = 0, dtype: torch.dtype = torch.float32
) -> Experts:
    """Return experts whose weights share a part, so that they are similar; down is a view."""
    generator = torch.Generator().manual_seed(seed)
    common = [torch.randn(shape, generator=generator) for shape in shapes]
    experts = []
    for number in range(count):
        own = [torch.randn(shape, generator=generator) * (1 + number) for shape in shapes]
        matrices = [(c + o).to(dtype) for c, o in zip(common, own, strict=True)]
        experts.append((*matrices[:-1], matrices[-1].T.contiguous().T))
    return experts


def arrays(experts: Experts) -> list[list[np.ndarray]]:
    return [[matrix.double().numpy() for matrix in expert] for expert in experts]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("piece", [1, 100, 1 << 22])
def test_weight_statistics(dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights._PIECE, "cpu", piece)
    experts = random_experts(4, (12, 8), (12, 8), (12, 8), dtype=dtype)
    gate = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = naive.weight_statistics(gate.double().numpy(), arrays(experts))
    naive.assert_same(weight_statistics(gate, iter(experts)), expected)


def test_weight_statistics_of_larger_matrices() -> None:
    experts = random_experts(2, (200, 160), (200, 160), (200, 160))
    gate = torch.randn(2, 160)
    expected = naive.weight_statistics(gate.double().numpy(), arrays(experts))
    naive.assert_same(weight_statistics(gate, experts), expected)


@pytest.mark.parametrize("piece", [1, 50, 1 << 22])
def test_gradient_statistics(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights._PIECE, "cpu", piece)
    experts = random_experts(3, (40, 6), (40, 6), (40, 6), seed=2)
    experts[1][0][::17] *= 30.0  # outliers
    found = gradient_statistics(iter(experts))
    naive.assert_same(found, naive.gradient_statistics(arrays(experts)))
    assert found.outliers[1] > 0


def test_a_gradient_of_zero() -> None:
    experts = random_experts(3, (20, 5), (20, 5), (20, 5), seed=3)
    experts[1] = tuple(torch.zeros(20, 5) for _ in range(3))
    found = gradient_statistics(experts)
    naive.assert_same(found, naive.gradient_statistics(arrays(experts)))
    assert found.similarity[1].tolist() == [0, 0, 0]
    assert found.entropy[1] == pytest.approx(3 * 5 * np.log(1e-8))
    assert (found.norm[1], found.outliers[1]) == (0, 0)


def test_weights_of_zero_have_rank_zero() -> None:
    zeros = tuple(torch.zeros(20, 5) for _ in range(3))
    found = weight_statistics(torch.ones(1, 5), [zeros])
    assert found.stable_rank.tolist() == [0]
    assert found.flatness is not None and found.flatness.tolist() == [1]  # as flat as any


def test_flat_weights_are_flatter_than_peaked_ones() -> None:
    flat = tuple(torch.full((20, 5), -0.5) for _ in range(3))
    peaked = tuple(torch.zeros(20, 5) for _ in range(3))
    peaked[1][0, 0] = 9.0
    found = weight_statistics(torch.ones(2, 5), [flat, peaked]).flatness
    assert found is not None
    assert found.tolist() == pytest.approx([1.0, 300**-0.5])


def largest(matrix: Tensor) -> float:
    return float(largest_singular_values(matrix[None].clone()))


@pytest.mark.parametrize("shape", [(20, 30), (300, 200), (200, 1100)])
def test_singular_values_of_many_are_those_of_each(shape: tuple[int, int]) -> None:
    """Of spectra that need few and many steps, of zeros, and of rank one."""
    generator = torch.Generator().manual_seed(4)
    some = torch.randn(5, *shape, generator=generator)
    some[1] *= torch.arange(1.0, shape[1] + 1) ** -0.5
    some[2] = 0
    some[3] = torch.outer(some[3, :, 0], some[3, 0]) * 1e-20
    expected = torch.linalg.matrix_norm(some.double(), 2)
    found = largest_singular_values(some.clone())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_only_products_of_what_has_few_bits_are_made_in_few_bits() -> None:
    """A matrix in float32 whose last bits count, beside one in bfloat16; and afterwards nothing."""
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    plain = torch.eye(200).repeat(2, 1) * (1 + 2.0**-12)
    for matrix in (plain, plain.bfloat16()):
        exact = float(torch.linalg.matrix_norm(matrix.double(), 2))
        assert largest(matrix) == pytest.approx(exact, rel=1e-6)
        assert settings.fp32_precision == before
    torch.get_float32_matmul_precision()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "shape", [(SMALL, 300), (SMALL + 1, SMALL + 1), (400, 200), (200, 400), (1, 9), (1100, 1030)]
)
def test_largest_singular_value_of_random_matrices(
    shape: tuple[int, int], dtype: torch.dtype, seed: int
) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    exact = float(torch.linalg.matrix_norm(matrix.double(), 2))
    assert largest(matrix) == pytest.approx(exact, rel=1e-6)
    assert largest(matrix.T) == pytest.approx(exact, rel=1e-6)


SPECTRA = {
    "two nearly equal": [1.0, 1 - 1e-7] + [0.5] * 198,
    "all equal": [1.0] * 200,
    "rank one": [1.0] + [0.0] * 199,
    "even": list(np.linspace(0, 1, 200)),
    "slow": list(np.arange(1, 201.0) ** -0.1),
    "huge": list(np.linspace(0, 1e25, 200)),
    "tiny": list(np.linspace(0, 1e-25, 200)),
    "zero": [0.0] * 200,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SPECTRA)
def test_largest_singular_value_of_hard_spectra(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.tensor(SPECTRA[name], dtype=torch.float64)
    left, right = (
        torch.linalg.qr(torch.randn(200, 200, generator=generator, dtype=torch.float64))[0]
        for _ in range(2)
    )
    matrix = (left * spectrum @ right).to(dtype)
    exact = float(spectrum.max())
    assert largest(matrix) == pytest.approx(exact, rel=1e-6, abs=0)
