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
from offline.calibration.spectral import largest_singular_values
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
# Numbers in float64 at the same time: what a cache holds (4 MiB), or few launches.
_PIECE = {"cpu": 1 << 19}
_PIECE_ELSEWHERE = 1 << 27


def weight_statistics(gate: Tensor, experts: Iterable[Expert]) -> WeightStatistics:
    """Return EWS, RWN, WSR and EWN of one layer (MC-Suite, equations 3 to 6), and AIMER.

    :param gate: [E, D] rows of the router
    :param experts: E tuples of matrices [I, D]; their references are held, not copies
    """
    held = list(experts)
    assert len(held) == len(gate), (len(held), len(gate))
    similarity, norm, squares, magnitude = _cosines(held)
    return WeightStatistics(
        similarity=similarity,
        router_norm=_numpy(torch.linalg.vector_norm(gate.detach().double(), dim=1)),
        stable_rank=_stable_ranks(held, squares),
        norm=norm,
        flatness=_flatness(held[0], norm, magnitude),
    )


def gradient_statistics(experts: Iterable[Expert]) -> GradientStatistics:
    """Return EGS, EGE, EGO and EGN of one layer (MC-Suite, equations 14 to 16).

    Deviations and means are over the other axis of each hidden index, of the population; entropy
    and outliers are summed over the matrices. A gradient of zero has cosine 0 with all others and
    the least entropy, a deviation of LEAST_DEVIATION everywhere.

    :param experts: E tuples of the gradients [I, D]; their references are held, not copies
    """
    held = list(experts)
    similarity, norm, _, _ = _cosines(held)
    entropy, outliers = _numpy(torch.stack([_spread(expert) for expert in held])).T
    return GradientStatistics(similarity, entropy, outliers, norm)


def _flatness(expert: Expert, norm: Floats, magnitude: Floats) -> Floats:
    """Return mean |w| / rms(w) of each expert's numbers [E]; those of zeros are as flat as any, 1.

    :param expert: one of them; all have as many numbers
    :param norm: [E] l2 norms
    :param magnitude: [E] sums of |w|
    """
    count = sum(matrix.shape.numel() for matrix in expert)
    flat = np.ones_like(norm)
    np.divide(magnitude, norm * np.sqrt(count), out=flat, where=norm > 0)
    return flat


def _cosines(experts: Sequence[Expert]) -> tuple[Floats, Floats, Floats, Floats]:
    """Return the cosines [E, E] of the flattened experts, their l2 norms [E], the squared norms
    [P, E] of each of their P matrices, and their l1 norms [E]."""
    count, device = len(experts), experts[0][0].device
    gram = torch.zeros(count, count, dtype=torch.float64, device=device)
    magnitude = torch.zeros(count, dtype=torch.float64, device=device)
    squares = []
    for matrices in zip(*experts, strict=True):
        own = torch.zeros_like(gram)
        height, width = matrices[0].shape
        for rows in _slices(height, count * width, device):
            size = len(range(height)[rows])
            piece = torch.empty(count, size, width, dtype=torch.float64, device=device)
            for place, matrix in zip(piece, matrices, strict=True):
                place.copy_(matrix.detach()[rows])
            product = piece.flatten(1) @ piece.flatten(1).T
            gram += product
            own += product
            magnitude += piece.abs_().flatten(1).sum(dim=1)  # in place: the piece is done with
        squares.append(own.diag())
    products = _numpy(gram)
    norm = np.sqrt(np.diag(products))
    inverse = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)
    cosines = products * inverse[:, None] * inverse[None, :]
    np.fill_diagonal(cosines, norm > 0)
    return cosines, norm, _numpy(torch.stack(squares)), _numpy(magnitude)


def _stable_ranks(experts: Sequence[Expert], squares: Floats) -> Floats:
    """Return the means [E] over the matrices of |W|_F^2 / |W|_2^2; one of zeros has rank 0.

    :param squares: [P, E] the squared Frobenius norms
    """
    device = experts[0][0].device
    ranks = np.zeros_like(squares)
    for number, matrices in enumerate(zip(*experts, strict=True)):
        largest = []
        # One after the other on a CPU, which gains nothing by more.
        together = max(_PIECE_ELSEWHERE // matrices[0].shape.numel(), 1)
        size = 1 if device.type in _PIECE else together
        for begin in range(0, len(matrices), size):
            held = [matrix.detach()[:] for matrix in matrices[begin : begin + size]]
            joined = held[0][None] if len(held) == 1 else torch.stack(held)
            largest.append(largest_singular_values(joined))
        square = _numpy(torch.cat(largest)) ** 2
        np.divide(squares[number], square, out=ranks[number], where=square > 0)
    return np.asarray(ranks.mean(axis=0), dtype=np.float64)


def _spread(expert: Expert) -> Tensor:
    """Return the sum of the log deviations and the number of outliers of one expert, [2]."""
    found = torch.zeros(2, dtype=torch.float64, device=expert[0].device)
    for matrix in expert:
        for columns in _slices(matrix.shape[1], matrix.shape[0], matrix.device):
            part = matrix.detach()[:, columns].double()
            variance, mean = torch.var_mean(part, dim=0, correction=0)
            sigma = variance.sqrt()
            entropy = sigma.clamp_min(LEAST_DEVIATION).log().sum()
            found += torch.stack((entropy, ((part - mean).abs() > margin(mean, sigma)).sum()))
    return found


def _slices(length: int, width: int, device: torch.device) -> Iterator[slice]:
    """Cut ``length`` rows of ``width`` numbers into pieces of bounded size."""
    step = max(_PIECE.get(device.type, _PIECE_ELSEWHERE) // width, 1)
    yield from (slice(start, start + step) for start in range(0, length, step))


def _numpy(values: Tensor) -> Floats:
    return np.array(values.cpu().numpy(), dtype=np.float64)
