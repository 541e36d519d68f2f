"""The evidence of some experts only, as if the layer had no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np

from offline.calibration.statistics import (
    GradientStatistics,
    LayerEvidence,
    LayerStatistics,
    WeightStatistics,
)

_SQUARE = frozenset({"similarity", "logit_gram", "pairs"})  # [E, E]; all else is [E, ...]
_Statistics = TypeVar("_Statistics", LayerStatistics, WeightStatistics, GradientStatistics)


def only(evidence: LayerEvidence, experts: Sequence[int]) -> LayerEvidence:
    """Return a layer's evidence of these experts, in this order."""
    ids = list(experts)
    seen = _of(evidence.seen, ids)
    if seen.gradient is not None:
        seen = replace(seen, gradient=_of(seen.gradient, ids))
    return replace(evidence, seen=seen, weights=_of(evidence.weights, ids))


def _of(statistics: _Statistics, ids: list[int]) -> _Statistics:
    changes: dict[str, Any] = {}
    for field in fields(statistics):
        value = getattr(statistics, field.name)
        if isinstance(value, np.ndarray):
            changes[field.name] = value[np.ix_(ids, ids)] if field.name in _SQUARE else value[ids]
    return replace(statistics, **changes)
