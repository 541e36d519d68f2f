"""What the weights of a layer's experts, or their gradients, show by themselves.

An expert is a tuple of its matrices, each [I, D] with the model's hidden dimension last: gate,
up, and down transposed. They may be of any dtype and views of one fused tensor; only pieces of
bounded size are ever copied to float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from offline.calibration.outliers import margin
from offline.calibration.spectral import largest_singular_value
from offline.calibration.statistics import Floats, GradientStatistics, WeightStatistics


class Matrix(Protocol):
    """A tensor, or what stands for one and is made of its storage row by row (stored.py)."""

    @property
    def shape(self) -> torch.Size:
        """[N, K]."""

    @property
    def device(self) -> torch.device:
        """Where rows are."""

    def detach(self) -> Matrix:
        """Return the matrix without what autograd knows of it."""

    def __getitem__(self, rows: Any, /) -> Tensor:
        """Return some rows."""


Expert = tuple[Matrix, ...]

LEAST_DEVIATION = 1e-8  # the log of a smaller one would drown all other dimensions
_PIECE = 1 << 19  # numbers in float64 at the same time: 4 MiB, which a cache holds


def weight_statistics(gate: Tensor, experts: Iterable[Expert]) -> WeightStatistics:
    """Return EWS, RWN, WSR and EWN of one layer (MC-Suite, equations 3 to 6).

    :param gate: [E, D] rows of the router
    :param experts: E tuples of matrices [I, D]; their references are held, not copies
    """
    held = list(experts)
    assert len(held) == len(gate), (len(held), len(gate))
    similarity, norm = _cosines(held)
    return WeightStatistics(
        similarity=similarity,
        router_norm=_numpy(torch.linalg.vector_norm(gate.detach().double(), dim=1)),
        stable_rank=np.array([_stable_rank(expert) for expert in held]),
        norm=norm,
    )


def gradient_statistics(experts: Iterable[Expert]) -> GradientStatistics:
    """Return EGS, EGE, EGO and EGN of one layer (MC-Suite, equations 14 to 16).

    Deviations and means are over the other axis of each hidden index, of the population; entropy
    and outliers are summed over the matrices. A gradient of zero has cosine 0 with all others and
    the least entropy, a deviation of LEAST_DEVIATION everywhere.

    :param experts: E tuples of the gradients [I, D]; their references are held, not copies
    """
    held = list(experts)
    similarity, norm = _cosines(held)
    spread = [_spread(expert) for expert in held]
    return GradientStatistics(
        similarity=similarity,
        entropy=np.array([entropy for entropy, _ in spread]),
        outliers=np.array([float(outliers) for _, outliers in spread]),
        norm=norm,
    )


def _cosines(experts: Sequence[Expert]) -> tuple[Floats, Floats]:
    """Return the cosines [E, E] of the flattened experts and their l2 norms [E]."""
    count = len(experts)
    gram = torch.zeros(count, count, dtype=torch.float64, device=experts[0][0].device)
    for matrices in zip(*experts, strict=True):
        for rows in _slices(matrices[0].shape[0], count * matrices[0].shape[1]):
            piece = torch.stack([matrix.detach()[rows].double().flatten() for matrix in matrices])
            gram += piece @ piece.T
    products = _numpy(gram)
    norm = np.sqrt(np.diag(products))
    inverse = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)
    cosines = products * inverse[:, None] * inverse[None, :]
    np.fill_diagonal(cosines, norm > 0)
    return cosines, norm


def _stable_rank(expert: Expert) -> float:
    """Return the mean over the matrices of |W|_F^2 / |W|_2^2; a matrix of zeros has rank 0."""
    ranks = []
    for matrix in expert:
        weight = matrix.detach()[:]
        largest = largest_singular_value(weight)
        rows = _slices(weight.shape[0], weight.shape[1])
        square = sum(float(weight[part].double().square().sum()) for part in rows)
        ranks.append(square / largest**2 if largest > 0 else 0.0)
    return sum(ranks) / len(ranks)


def _spread(expert: Expert) -> tuple[float, int]:
    """Return the sum of the log deviations and the number of outliers of one expert."""
    entropy, outliers = 0.0, 0
    for matrix in expert:
        for columns in _slices(matrix.shape[1], matrix.shape[0]):
            part = matrix.detach()[:, columns].double()
            variance, mean = torch.var_mean(part, dim=0, correction=0)
            sigma = variance.sqrt()
            entropy += float(sigma.clamp_min(LEAST_DEVIATION).log().sum())
            outliers += int(((part - mean).abs() > margin(mean, sigma)).sum())
    return entropy, outliers


def _slices(length: int, width: int) -> Iterator[slice]:
    """Cut ``length`` rows of ``width`` numbers into pieces of bounded size."""
    step = max(_PIECE // width, 1)
    yield from (slice(start, start + step) for start in range(0, length, step))


def _numpy(values: Tensor) -> Floats:
    return np.array(values.cpu().numpy(), dtype=np.float64)
