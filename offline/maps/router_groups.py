"""`RouterGroups`: the groups of experts that a group-limited router chooses among first.

DeepSeek-V2, DeepSeek-V3 and GLM-4-MoE (`n_group`, `topk_group`): of G groups a token's k experts
come from the best few. Groups are equal slices of the experts, in order of id, before pruning and
after, so all of them must keep the same number.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_moe_prune.layout import MoeLayout

# DeepSeek-V3 and GLM-4-MoE judge a group by the sum of its two best scores.
_JUDGED_BY = 2


@dataclass(frozen=True, slots=True)
class RouterGroups:
    """G groups, of which ``active`` provide a token's experts; 1 and 1 where there are none."""

    count: int = 1
    active: int = 1

    @classmethod
    def of(cls, layout: MoeLayout, config: Mapping[str, Any]) -> RouterGroups:
        """Read what a config.json says."""
        count = layout.num_groups(config)
        active = layout.text_config(config).get("topk_group")
        return cls(count, int(active or 1) if count > 1 else 1)

    def least(self, top_k: int) -> int:
        """Return the fewest experts of a layer from which every token reaches ``top_k``."""
        if self.count == 1:
            return top_k
        return self.count * max(_JUDGED_BY, math.ceil(top_k / self.active))

    def reachable(self, kept: int) -> int:
        """Return among how many of ``kept`` experts a token can choose."""
        return kept // self.count * self.active

    def rounded_up(self, kept: int) -> int:
        """Return the next number of experts that the groups can share, ``kept`` if they can."""
        return math.ceil(kept / self.count) * self.count

    def parts(self, num_experts: int) -> tuple[range, ...]:
        """Return the expert ids of each group; E is a multiple of G."""
        size = num_experts // self.count
        return tuple(range(start, start + size) for start in range(0, size * self.count, size))

    def are_balanced(self, kept: Collection[int], num_experts: int) -> bool:
        """Whether every group keeps the same number of these experts."""
        return len({sum(i in part for i in kept) for part in self.parts(num_experts)}) == 1
