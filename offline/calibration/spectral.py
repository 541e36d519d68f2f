"""The largest singular value of a matrix, without a decomposition of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

SMALL = 128  # of the shorter side: up to here a full decomposition is as fast
_MOST_STEPS = 400
_CHECK = 8  # steps between looks at the estimate
_TOLERANCE = 1e-8  # relative change of the eigenvalue between two looks
_CACHED = 1024  # of the shorter side
_TINY = 16.0  # rounding errors of the dtype: a rest so small is all rounding


def largest_singular_value(matrix: Tensor, *, seed: int = 0) -> float:
    """Return the spectral norm of ``matrix`` [m, n], to about 1e-7 of it.

    A matrix with a short side is decomposed. Else it is power iteration that forgets no step
    (Golub-Kahan-Lanczos): the best estimate within all vectors W^T W reached so far, from a
    seeded random start. That needs some fifty products with W where plain power iteration needs
    thousands, because the largest singular values of random matrices lie close together.
    """
    matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    if min(matrix.shape) <= SMALL:
        return float(torch.linalg.svdvals(matrix.double())[0])
    scale = float(matrix.abs().max())
    if scale == 0.0:
        return 0.0
    # On the shorter side the basis is shorter. Scaling keeps squares within float32.
    matrix = (matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T) / scale
    size = matrix.shape[1]
    start = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # Products with a matrix that fits the cache are worth computing it first.
    gram = matrix.T @ matrix if size <= _CACHED else None
    step = gram.mv if gram is not None else lambda vector: matrix.T @ (matrix @ vector)
    return scale * math.sqrt(_lanczos(step, (start / start.norm()).to(matrix)))


def _lanczos(product: Callable[[Tensor], Tensor], vector: Tensor) -> float:
    """Return the largest eigenvalue of a symmetric matrix without negative ones, [n, n].

    :param product: multiplies it with a vector [n]
    :param vector: [n] of length 1 to start from
    """
    size = len(vector)
    basis = vector.new_empty(min(_MOST_STEPS, size), size)
    tiny, last = _TINY * torch.finfo(vector.dtype).eps, 0.0
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(len(basis)):
        basis[step] = vector
        rest = product(vector)
        diagonal.append(float(torch.dot(vector, rest)))
        for _ in range(2):  # once is not orthogonal to working precision
            rest = rest - basis[: step + 1].T @ (basis[: step + 1] @ rest)
        length = float(rest.norm())
        ended = length <= tiny * max(diagonal) or step + 1 == len(basis)
        if ended or (step + 1) % _CHECK == 0:
            found = _largest_eigenvalue(diagonal, beside)
            if ended or found - last <= _TOLERANCE * found:
                return max(found, 0.0)
            last = found
        beside.append(length)
        vector = rest / length
    raise AssertionError("the loop returns in its last step")


def _largest_eigenvalue(diagonal: list[float], beside: list[float]) -> float:
    """Return that of the symmetric tridiagonal matrix with these entries."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    steps = torch.tensor(beside[: len(diagonal) - 1], dtype=torch.float64)
    return float(torch.linalg.eigvalsh(matrix + torch.diag(steps, -1), UPLO="L")[-1])
