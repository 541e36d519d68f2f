"""A genome of EEP: per depth group the matrices W_EM and W_RM, [E', E] each (section 4.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float32]
Kept = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Coefficients:
    """W_EM (``experts``) and W_RM (``router``) of one group, [E', E] float32, read-only."""

    experts: Matrix
    router: Matrix

    def __post_init__(self) -> None:
        for name in ("experts", "router"):
            matrix = np.array(getattr(self, name), np.float32, order="C") + np.float32(0)  # no -0
            assert matrix.ndim == 2 and 1 <= matrix.shape[0] <= matrix.shape[1], matrix.shape
            assert np.isfinite(matrix).all(), name
            matrix.setflags(write=False)
            object.__setattr__(self, name, matrix)
        assert self.experts.shape == self.router.shape, (self.experts.shape, self.router.shape)

    @classmethod
    def one_hot(cls, kept: Sequence[int], num_experts: int) -> Coefficients:
        """Keep these experts: W_EM = W_RM, row j selects expert ``kept[j]``."""
        rows = np.eye(num_experts, dtype=np.float32)[list(kept)]
        return cls(rows, rows)

    @property
    def rows(self) -> int:
        """E', the experts that the group keeps."""
        return int(self.experts.shape[0])

    @property
    def num_experts(self) -> int:
        """E of the base."""
        return int(self.experts.shape[1])

    @property
    def is_tied(self) -> bool:
        """Whether W_RM = W_EM."""
        return np.array_equal(self.experts, self.router)

    @property
    def is_one_hot(self) -> bool:
        """Whether every row of both matrices selects one expert."""
        return selected(self.experts) is not None and selected(self.router) is not None

    @property
    def main(self) -> Kept:
        """The expert that counts most in each row of W_EM; of a one-hot row the one it selects."""
        return tuple(int(i) for i in self.experts.argmax(axis=1))

    def _identity(self) -> Iterable[bytes]:
        """Bytes that two coefficients share exactly where they are the same to a model."""
        kept = selected(self.experts)
        order = (
            np.argsort(kept, kind="stable") if kept is not None and self.is_tied else slice(None)
        )
        yield repr(self.experts.shape).encode()
        yield self.experts[order].tobytes()
        yield self.router[order].tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class Genome:
    """The coefficients of every depth group; equal where all numbers are."""

    groups: tuple[Coefficients, ...]

    @classmethod
    def of_kept(cls, kept: Sequence[Sequence[int]], num_experts: Sequence[int]) -> Genome:
        """Keep these experts in each group: one-hot and tied."""
        pairs = zip(kept, num_experts, strict=True)
        return cls(tuple(Coefficients.one_hot(ids, count) for ids, count in pairs))

    @classmethod
    def identity(cls, num_experts: Sequence[int]) -> Genome:
        """Keep every expert of every group in place."""
        return cls.of_kept([range(count) for count in num_experts], num_experts)

    @property
    def rows(self) -> tuple[int, ...]:
        """E' of each group."""
        return tuple(group.rows for group in self.groups)

    @property
    def is_tied(self) -> bool:
        """Whether W_RM = W_EM in every group."""
        return all(group.is_tied for group in self.groups)

    @property
    def is_one_hot(self) -> bool:
        """Whether every row of every matrix selects one expert."""
        return all(group.is_one_hot for group in self.groups)

    @property
    def key(self) -> str:
        """A digest of what the genome does: the order of kept experts changes nothing.

        Genomes that are not one-hot and tied are told apart by their numbers as they stand.
        """
        digest = hashlib.sha256()
        for group in self.groups:
            for part in group._identity():
                digest.update(part)
        return digest.hexdigest()

    def _content(self) -> tuple[tuple[tuple[int, ...], bytes, bytes], ...]:
        return tuple(
            (group.experts.shape, group.experts.tobytes(), group.router.tobytes())
            for group in self.groups
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Genome) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self._content())


def selected(matrix: ArrayLike) -> Kept | None:
    """Return the expert that each row of a one-hot matrix selects (maybe twice), else None."""
    values = np.asarray(matrix)
    is_one_hot = ((values == 0) | (values == 1)).all() and (values.sum(axis=1) == 1).all()
    return tuple(int(i) for i in values.argmax(axis=1)) if is_one_hot else None
