"""`MoeShape`: which model it is and how its layers route; what spaces, scores and plans go by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from offline.maps.router_groups import RouterGroups
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.fingerprint import BaseFingerprint


@dataclass(frozen=True, slots=True)
class MoeShape:
    """A model's identity and the numbers of its MoE layers.

    ``num_experts`` and ``top_k`` are decoder layer -> E and -> active experts per token.
    ``num_groups`` counts the groups that a group-limited router chooses among first (1 for most
    families), ``topk_group`` those that provide a token's experts. ``slices`` says whether to keep
    gate rows is the same as to keep scores (`MoeLayout.slices`), ``mappable`` whether a W_RM can
    act at all (`MoeLayout.mappable`). ``incomplete`` are the experts that lack a tensor, as those
    that a quantiser's calibration never reached: decoder layer -> ids.
    """

    model_type: str
    base: BaseFingerprint
    num_experts: Mapping[int, int]
    top_k: Mapping[int, int]
    num_groups: int = 1
    topk_group: int = 1
    slices: bool = True
    mappable: bool = True
    incomplete: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.num_experts.keys() == self.top_k.keys(), "counts of other layers"

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> MoeShape:
        """Describe a checkpoint; reads headers and the router's weights only.

        :raises PruneError: if the checkpoint cannot be read
        """
        layout, num_experts = checkpoint.layout, checkpoint.expert_counts()
        router = RouterGroups.of(layout, checkpoint.config)
        return cls(
            model_type=layout.model_type,
            base=checkpoint.fingerprint(),
            num_experts=num_experts,
            top_k=dict.fromkeys(num_experts, layout.top_k(checkpoint.config)),
            num_groups=router.count,
            topk_group=router.active,
            slices=layout.slices,
            mappable=layout.mappable,
            incomplete=incomplete_of(checkpoint),
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """Return the decoder layers that have experts, in order."""
        return tuple(self.num_experts)

    def check_complete(self) -> None:
        """Refuse what may come to keep any expert where some could not be written.

        :raises PruneError: naming a layer with experts that lack tensors
        """
        for layer, experts in self.incomplete.items():
            raise PruneError(
                f"experts of this checkpoint lack tensors that others of their layers have (layer "
                f"{layer}: {', '.join(map(str, experts))})",
                hint="vmprune score, then plan, which drops them first, and build; "
                "`vmprune inspect MODEL` names the tensors",
            )

    @property
    def router_groups(self) -> RouterGroups:
        """Return the groups that the router chooses among first."""
        return RouterGroups(self.num_groups, self.topk_group)


def incomplete_of(checkpoint: Checkpoint) -> dict[int, tuple[int, ...]]:
    """Return decoder layer -> experts that lack a tensor; layers of whole ones are not there."""
    return {layer: tuple(lacks) for layer, lacks in checkpoint.missing_tensors().items()}
