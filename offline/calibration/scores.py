"""`Scores`: the artefact of `vmprune score`, kept per domain so that blends are made later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from offline.calibration.blend import blended, factors
from offline.calibration.scores_file import SCORES_FILE, ScoresRecord, read, record_of, write
from offline.calibration.statistics import ExpertEvidence, LayerStatistics, WeightStatistics
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import DataIdentity, Provenance, sha256_text
from vllm_moe_prune.routing_map import BaseFingerprint


@dataclass(frozen=True, slots=True)
class Scores:
    """The statistics of a model on some domains of text.

    All domains have the same layers. ``sequences`` says of how many sequences the text of a domain
    was; ``num_groups`` counts the groups among which a group-limited router chooses first, and
    ``topk_group`` those that it takes; ``slices`` is the model's `MoeLayout.slices`.
    """

    model_type: str
    base: BaseFingerprint
    top_k: Mapping[int, int]  # decoder layer -> k
    domains: Mapping[str, Mapping[int, LayerStatistics]]  # domain -> decoder layer -> statistics
    weights: Mapping[int, WeightStatistics]  # decoder layer -> statistics
    provenance: Provenance
    sequences: Mapping[str, int] = field(default_factory=dict)  # domain -> sequences
    num_groups: int = 1
    slices: bool = True
    topk_group: int = 1

    def __post_init__(self) -> None:
        assert self.domains, "no domain"
        for layers in self.domains.values():
            assert layers.keys() == self.top_k.keys() == self.weights.keys()

    @property
    def num_experts(self) -> dict[int, int]:
        """Return decoder layer -> E."""
        layers = next(iter(self.domains.values()))
        return {number: seen.num_experts for number, seen in layers.items()}

    def tokens(self, domain: str) -> int:
        """Return the number of tokens of a domain."""
        return int(next(iter(self.domains[domain].values())).tokens)

    def evidence(self, blend: Mapping[str, float] | None = None) -> dict[int, ExpertEvidence]:
        """Return decoder layer -> what criteria look at, for a blend of the domains.

        :param blend: domain -> weight; domains not named have weight 0; None pools all domains, so
            that each token counts the same (see `factors` for the formula)
        :raises PruneError: if a domain is unknown, a weight negative, or none above 0
        """
        return {number: self._evidence(number, blend) for number in sorted(self.top_k)}

    def _evidence(self, number: int, blend: Mapping[str, float] | None) -> ExpertEvidence:
        tokens = {domain: layers[number].tokens for domain, layers in self.domains.items()}
        parts = [
            (factor, self.domains[domain][number])
            for domain, factor in factors(tokens, blend).items()
        ]
        return ExpertEvidence(number, self.top_k[number], blended(parts), self.weights[number])

    def save(self, folder: Path) -> None:
        """Write ``scores.json`` and ``scores.safetensors`` into ``folder``.

        The JSON is removed first and written last, so that scores are whole or absent.
        """
        write(folder, self.domains, self.weights, self._record())

    def _record(self) -> ScoresRecord:
        return record_of(
            self.domains,
            sequences=self.sequences,
            model_type=self.model_type,
            base=self.base,
            top_k=dict(self.top_k),
            num_groups=self.num_groups,
            topk_group=self.topk_group,
            slices=self.slices,
            provenance=self.provenance,
        )

    @classmethod
    def load(cls, folder: Path) -> Scores:
        """Read what `save` wrote; needs no torch.

        :raises PruneError: if something is missing, damaged, or of a newer schema
        """
        record, domains, weights = read(folder)
        return cls(
            model_type=record.model_type,
            base=record.base,
            top_k=record.top_k,
            domains=domains,
            weights=weights,
            provenance=record.provenance,
            sequences={
                name: entry.sequences
                for name, entry in record.domains.items()
                if entry.sequences is not None
            },
            num_groups=record.num_groups,
            slices=record.slices,
            topk_group=record.topk_group,
        )


SOURCE = "scores"  # name of the scores in the data of what they decided


Evidence = Mapping[int, ExpertEvidence]  # decoder layer -> what criteria look at


def tokens_seen(
    scores: Scores, blend: Mapping[str, float] | None = None
) -> dict[int, tuple[int, ...]]:
    """Return decoder layer -> tokens routed to each expert [E], of all domains with a weight."""
    domains = [scores.domains[name] for name in scores.domains if blend is None or blend.get(name)]
    return {
        layer: tuple(int(n) for n in np.sum([domain[layer].counts for domain in domains], axis=0))
        for layer in scores.top_k
    }


def identity_of(scores: Scores, folder: Path) -> DataIdentity:
    """Say by content which scores a folder holds: its JSON has the digest of the tensors."""
    text = (folder / SCORES_FILE).read_text()
    return DataIdentity(name=SOURCE, count=len(scores.domains), sha256=sha256_text(text))


def check_scores(scores: Scores, base: BaseFingerprint) -> None:
    """Refuse scores of another model.

    :raises PruneError: if the scores were not made of this base
    """
    if not scores.base.matches(base):
        raise PruneError(
            f"the scores are of another base ({scores.base.name or 'unnamed'})",
            hint="score this model: vmprune score",
        )
