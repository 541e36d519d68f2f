"""The largest singular values of matrices, without a decomposition of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

SMALL = 128  # of the shorter side: up to here a full decomposition is as fast
_MOST_STEPS = 400
_CHECK = 8  # steps between looks at the estimates
_TOLERANCE = 1e-8  # relative change of an eigenvalue between two looks
_CACHED = 1024  # of the shorter side
_BLOCK = 256  # columns of a product with itself that are computed at once
_TINY = 16.0  # rounding errors of the dtype: a rest so small is all rounding


def largest_singular_values(matrices: Tensor, *, seed: int = 0) -> Tensor:
    """Return the spectral norms [N] in float64 of ``matrices`` [N, m, n], to about 1e-7 of each.

    Matrices with a short side are decomposed. Else it is power iteration that forgets no step
    (Golub-Kahan-Lanczos): the best estimate within all vectors W^T W reached so far, from a
    seeded random start. That needs some fifty products with W where plain power iteration needs
    thousands, because the largest singular values of random matrices lie close together.
    """
    if min(matrices.shape[1:]) <= SMALL:
        values: Tensor = torch.linalg.svdvals(matrices.double())  # [N, n], the largest first
        return values[:, 0]
    peaks = torch.maximum(matrices.amax((1, 2)), -matrices.amin((1, 2))).double()  # [N]
    # Scaling by a power of two keeps squares within float32 and rounds nothing.
    scale = torch.ldexp(torch.ones_like(peaks), torch.frexp(peaks).exponent)
    factor = (1.0 / scale).to(torch.promote_types(matrices.dtype, torch.float32))
    wide = matrices * factor[:, None, None]
    if wide.shape[1] < wide.shape[2]:  # on the shorter side the basis is shorter
        wide = wide.mT
    size = wide.shape[2]
    start = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    vector = (start / start.norm()).to(wide).expand(len(wide), size)
    # Products with a matrix that fits the cache are worth computing it first.
    gram = None
    if size <= _CACHED:
        with _exact_products(matrices.dtype):
            gram = _gram(wide)

    def product(vector: Tensor) -> Tensor:
        return _times(gram, vector) if gram is not None else _times(wide.mT, _times(wide, vector))

    return scale.cpu() * _lanczos(product, vector).sqrt()


def _lanczos(product: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor:
    """Return the largest eigenvalue of N symmetric matrices without negative ones, [N] float64.

    Only every few steps something waits for the device. A matrix whose vectors have come to an end
    goes on with zeros, which add nothing.

    :param product: multiplies each with its vector, [N, n] -> [N, n]
    :param vector: [N, n] of length 1 to start from
    """
    count, size = vector.shape
    basis = vector.new_empty(count, min(_MOST_STEPS, size), size)
    limits = torch.finfo(vector.dtype)
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    most = vector.new_zeros(count)
    last = found = torch.zeros(count, dtype=torch.float64)
    open_ = torch.ones(count, dtype=torch.bool)
    for step in range(basis.shape[1]):
        basis[:, step] = vector
        rest = product(vector)
        diagonal.append((vector * rest).sum(dim=1))
        most = torch.maximum(most, diagonal[-1])
        seen = basis[:, : step + 1]
        for _ in range(2):  # once is not orthogonal to working precision
            rest = rest - _times(seen.mT, _times(seen, rest))
        length = torch.linalg.vector_norm(rest, dim=1)
        length = length * (length > _TINY * limits.eps * most)
        beside.append(length)
        vector = (rest / length.clamp_min(limits.tiny)[:, None]) * (length > 0)[:, None]
        if (step + 1) % _CHECK == 0 or step + 1 == basis.shape[1]:
            now = _largest_eigenvalues(diagonal, beside)
            found = torch.where(open_, now, found)
            open_ &= now - last > _TOLERANCE * now
            if not open_.any():
                break
            last = now
    return found.clamp_min(0.0)


@contextmanager
def _exact_products(stored: torch.dtype) -> Iterator[None]:
    """Let a CPU multiply float32 numbers that were stored in bfloat16 as such, where it can.

    Products of two of them are exact either way, and are added up in float32.
    """
    if stored != torch.bfloat16:
        yield
        return
    backend: Any = torch.backends.mkldnn
    settings = backend.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def _gram(matrices: Tensor) -> Tensor:
    """Return W^T W, [N, n, n], of matrices [N, m, n]; what mirrors a block is not computed."""
    count, _, size = matrices.shape
    found = matrices.new_empty(count, size, size)
    for begin in range(0, size, _BLOCK):
        part, rest = slice(begin, begin + _BLOCK), slice(begin, None)
        for own, gram in zip(_one_or_all(matrices), _one_or_all(found), strict=True):
            block = own[..., rest].mT @ own[..., part]
            gram[..., rest, part] = block
            gram[..., part, rest] = block.mT
    return found


def _one_or_all(matrices: Tensor) -> Tensor:
    """Return what to take products of: a CPU is faster at a matrix than at a batch of one."""
    return matrices if len(matrices) == 1 else matrices[None]


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Return the products [N, m] of matrices [N, m, n] and vectors [N, n]."""
    if len(matrices) == 1:  # several times as fast on a CPU
        return matrices[0].mv(vectors[0])[None]
    return (matrices @ vectors[:, :, None])[:, :, 0]


def _largest_eigenvalues(diagonal: list[Tensor], beside: list[Tensor]) -> Tensor:
    """Return those of the symmetric tridiagonal matrices with these entries, [N] on the host."""
    both = torch.stack((*diagonal, *beside)).cpu().double()
    entries, steps = both[: len(diagonal)], both[len(diagonal) :]
    matrix = torch.diag_embed(entries.T) + torch.diag_embed(steps[:-1].T, offset=-1)
    values: Tensor = torch.linalg.eigvalsh(matrix, UPLO="L")  # [N, steps], the largest last
    return values[:, -1]
