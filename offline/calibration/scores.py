"""`Scores`: the artefact of `vmprune score`, kept per domain so that blends are made later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from offline.calibration.statistics import ExpertEvidence, LayerStatistics, WeightStatistics
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import BaseFingerprint


@dataclass(frozen=True, slots=True)
class Scores:
    """The statistics of a model on some domains of text."""

    model_type: str
    base: BaseFingerprint
    top_k: Mapping[int, int]  # decoder layer -> k
    domains: Mapping[str, Mapping[int, LayerStatistics]]  # domain -> decoder layer -> statistics
    weights: Mapping[int, WeightStatistics]  # decoder layer -> statistics
    provenance: Provenance

    def evidence(self, blend: Mapping[str, float] | None = None) -> dict[int, ExpertEvidence]:
        """Return decoder layer -> what criteria look at, for a blend of the domains."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write ``scores.json`` and ``scores.safetensors``."""
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path) -> Scores:
        """Read what `save` wrote."""
        raise NotImplementedError
