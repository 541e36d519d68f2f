"""`Scores`: the artefact of `vmprune score`, kept per domain so that blends are made later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from offline.calibration.blend import blended, factors
from offline.calibration.scores_file import SCORES_FILE, read, record_of, write
from offline.calibration.statistics import LayerEvidence, LayerStatistics, WeightStatistics
from offline.maps.moe_shape import MoeShape
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.fingerprint import BaseFingerprint
from vllm_moe_prune.provenance import DataIdentity, Provenance, sha256_text
from vllm_moe_prune.reading import read_text


@dataclass(frozen=True, slots=True)
class Scores:
    """The statistics of a model on some domains of text.

    All domains have the layers of ``shape``. ``sequences`` says of how many sequences the text of
    a domain was.
    """

    shape: MoeShape
    domains: Mapping[str, Mapping[int, LayerStatistics]]  # domain -> decoder layer -> statistics
    weights: Mapping[int, WeightStatistics]  # decoder layer -> statistics
    provenance: Provenance
    sequences: Mapping[str, int] = field(default_factory=dict)  # domain -> sequences

    def __post_init__(self) -> None:
        assert self.domains, "no domain"
        experts = self.shape.num_experts
        assert self.weights.keys() == experts.keys()
        for layers in self.domains.values():
            assert {number: seen.num_experts for number, seen in layers.items()} == experts

    def tokens(self, domain: str) -> int:
        """Return the number of tokens of a domain."""
        return int(next(iter(self.domains[domain].values())).tokens)

    def evidence(self, blend: Mapping[str, float] | None = None) -> dict[int, LayerEvidence]:
        """Return decoder layer -> what criteria look at, for a blend of the domains.

        :param blend: domain -> weight; domains not named have weight 0; None pools all domains, so
            that each token counts the same (see `factors` for the formula)
        :raises PruneError: if a domain is unknown, a weight negative, or none above 0
        """
        return {number: self._evidence(number, blend) for number in sorted(self.shape.layers)}

    def _evidence(self, number: int, blend: Mapping[str, float] | None) -> LayerEvidence:
        tokens = {domain: layers[number].tokens for domain, layers in self.domains.items()}
        parts = [
            (factor, self.domains[domain][number])
            for domain, factor in factors(tokens, blend).items()
        ]
        return LayerEvidence(number, self.shape.top_k[number], blended(parts), self.weights[number])

    def save(self, folder: Path) -> None:
        """Write ``scores.json`` and ``scores.safetensors`` into ``folder``.

        The JSON is removed first and written last, so that scores are whole or absent.
        """
        record = record_of(self.shape, self.domains, self.sequences, self.provenance)
        write(folder, self.domains, self.weights, record)

    @classmethod
    def load(cls, folder: Path) -> Scores:
        """Read what `save` wrote; needs no torch.

        :raises PruneError: if something is missing, damaged, or of a newer schema
        """
        record, domains, weights = read(folder)
        return cls(
            shape=record.shape,
            domains=domains,
            weights=weights,
            provenance=record.provenance,
            sequences={
                name: entry.sequences
                for name, entry in record.domains.items()
                if entry.sequences is not None
            },
        )


SOURCE = "scores"  # name of the scores in the data of what they decided


def tokens_seen(
    scores: Scores, blend: Mapping[str, float] | None = None
) -> dict[int, tuple[int, ...]]:
    """Return decoder layer -> tokens routed to each expert [E], of all domains with a weight."""
    domains = [scores.domains[name] for name in scores.domains if blend is None or blend.get(name)]
    return {
        layer: tuple(int(n) for n in np.sum([domain[layer].counts for domain in domains], axis=0))
        for layer in scores.shape.layers
    }


def identity_of(scores: Scores, folder: Path) -> DataIdentity:
    """Say by content which scores a folder holds: its JSON has the digest of the tensors."""
    text = read_text(folder / SCORES_FILE)
    return DataIdentity(name=SOURCE, count=len(scores.domains), sha256=sha256_text(text))


def check_scores(scores: Scores, base: BaseFingerprint) -> None:
    """Refuse scores of another model.

    :raises PruneError: if the scores were not made of this base
    """
    if not scores.shape.base.matches(base):
        raise PruneError(
            f"the scores are of another base ({scores.shape.base.name or 'unnamed'})",
            hint="score this model: vmprune score",
        )
