"""The space of one-hot maps of a base model: which experts each layer keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import BaseFingerprint, RoutingMap

Kept = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Space:
    """A base model and a budget: every layer keeps ``keep`` experts and activates ``top_k``.

    :raises PruneError: if the budget does not fit the model
    """

    model_type: str
    base: BaseFingerprint
    num_experts: Mapping[int, int]
    num_groups: int
    keep: int
    top_k: int

    def __post_init__(self) -> None:
        for layer, count in self.num_experts.items():
            if not 1 <= self.keep <= count:
                raise PruneError(f"--keep {self.keep}: layer {layer} has {count} experts")
        if not 1 <= self.top_k <= self.keep:
            raise PruneError(
                f"--top-k {self.top_k} does not fit {self.keep} kept experts",
                hint="keep at least as many experts as are active per token",
            )

    @classmethod
    def of(cls, checkpoint: Checkpoint, keep: int, top_k: int | None) -> Space:
        """Describe a checkpoint; ``top_k`` None means the model's own, at most ``keep``."""
        own = checkpoint.layout.top_k(checkpoint.config)
        return cls(
            model_type=checkpoint.layout.model_type,
            base=checkpoint.fingerprint(),
            num_experts=checkpoint.expert_counts(),
            num_groups=checkpoint.layout.num_groups(checkpoint.config),
            keep=keep,
            top_k=own if top_k is None else top_k,
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """Return the decoder layers that have experts, in order."""
        return tuple(self.num_experts)

    def routing_map(
        self,
        kept: Mapping[int, Kept],
        provenance: Provenance,
        tokens_seen: Mapping[int, Sequence[int]] | None = None,
    ) -> RoutingMap:
        """Make the one-hot map that keeps these experts, with sliced routers.

        :param kept: decoder layer -> expert ids, in the order of the new experts
        """
        layers = tuple(
            LayerMap(
                layer=layer,
                num_experts=count,
                num_kept=len(kept[layer]),
                top_k=self.top_k,
                experts=Selection(kept=tuple(sorted(kept[layer]))),
            )
            for layer, count in self.num_experts.items()
        )
        seen = (
            {k: tuple(int(n) for n in v) for k, v in tokens_seen.items()} if tokens_seen else None
        )
        return RoutingMap.build(
            model_type=self.model_type,
            base=self.base,
            num_groups=self.num_groups,
            layers=layers,
            tokens_seen=seen,
            provenance=provenance,
        )
