"""A fitness that needs no engine: accuracy of a random residual MoE network, in numpy.

Labels come from the same network with other experts' weights, so that the base is far from perfect
and both dropping and merging experts can gain, as EEP reports of real tasks. Items for the search
and unseen ones are drawn alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from offline.maps.depth_groups import Groups
from offline.maps.genome import Genome
from offline.maps.map_space import Space
from offline.methods.eep import Assessed
from tests.sample_shapes import shape_of

Array = NDArray[np.float64]


def space_of(
    layers: int = 6,
    experts: int = 8,
    keep: int | None = 4,
    *,
    top_k: int = 1,
    budget: int | None = None,
    floor: int = 1,
    slices: bool = True,
) -> Space:
    """A space without a checkpoint behind it."""
    counts = MappingProxyType(dict.fromkeys(range(layers), experts))
    shape = shape_of(counts, top_k, slices=slices)
    return Space.of(shape, keep if budget is None else None, budget=budget, floor=floor)


class Landscape:
    """Layers of E experts over D dimensions; ``items`` decide, ``unseen`` ones judge."""

    def __init__(
        self, seed: int, *, layers: int = 8, experts: int = 8, items: int = 200, unseen: int = 1000
    ) -> None:
        rng = np.random.default_rng(seed)
        d, inner, classes = 16, 24, 4
        self.gates = rng.normal(0, 2 / d**0.5, (layers, d, experts))
        self.up = rng.normal(0, 1.4 / d**0.5, (layers, experts, d, inner))
        self.down = rng.normal(0, 1.4 / inner**0.5, (layers, experts, inner, d))
        self.head = rng.normal(0, 1, (d, classes))
        x = (
            rng.normal(0, 1, (items + unseen, d))
            + rng.normal(0, 1, (6, d))[rng.integers(6, size=items + unseen)]
        )
        other = self.down + rng.normal(0, 1.0 / inner**0.5, self.down.shape) * rng.integers(
            2, size=(layers, experts, 1, 1)
        )
        full = np.stack([np.eye(experts)] * layers)
        truth = self._forward(x, full, full, self.up, other)
        self.labels = (truth + rng.gumbel(0, 0.5, truth.shape)).argmax(1)
        self.x, self.items = x, items

    def accuracy(self, genome: Genome, groups: Groups, *, unseen: bool = False) -> float:
        """Accuracy with a genome, on the search items or on the unseen ones."""
        part = slice(self.items, None) if unseen else slice(self.items)
        w_em, w_rm = [], []
        for group, coefficients in zip(groups, genome.groups, strict=True):
            w_em += [coefficients.experts] * group.size
            w_rm += [coefficients.router] * group.size
        logits = self._forward(self.x[part], w_em, w_rm, self.up, self.down)
        return float((logits.argmax(1) == self.labels[part]).mean())

    def assess(self, genomes: Sequence[Genome], groups: Groups) -> list[Assessed]:
        """Accuracy on the search items of each genome."""
        return [Assessed(self.accuracy(genome, groups)) for genome in genomes]

    def _forward(self, x: Array, w_em: Sequence, w_rm: Sequence, up: Array, down: Array) -> Array:  # type: ignore[type-arg]
        for layer, gate in enumerate(self.gates):
            h = x / np.sqrt((x**2).mean(1, keepdims=True))
            logits = h @ gate
            scores = np.exp(logits - logits.max(1, keepdims=True))
            mapped = scores / scores.sum(1, keepdims=True) @ w_rm[layer].T
            second = np.sort(mapped, axis=1)[:, -min(2, mapped.shape[1])][:, None]
            weights = np.where(mapped >= second, mapped, 0)
            weights /= weights.sum(1, keepdims=True) + 1e-9
            ups = np.tensordot(w_em[layer], up[layer], 1)
            downs = np.tensordot(w_em[layer], down[layer], 1)
            outputs = np.maximum(h @ ups, 0) @ downs  # [E', T, D]
            x = x + np.einsum("te,etd->td", weights, outputs) * 0.5
        return x @ self.head
