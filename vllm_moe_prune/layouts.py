"""`MoeLayout`: what distinguishes one model family from another, as data.

Adding a family is one instance in ``LAYOUTS``; no code asks for a model type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vllm_moe_prune.errors import PruneError

Score = Literal["softmax", "sigmoid"]


@dataclass(frozen=True, slots=True)
class Role:
    """What a tensor of an MoE block is: an expert's projection or part of the router."""

    kind: Literal["expert", "router"]
    layer: int
    expert: int | None = None


@dataclass(frozen=True, slots=True)
class MoeLayout:
    """Tensor names, config keys and routing semantics of one model family.

    ``expert`` and ``router`` are templates of tensor names as the hub has them, with the
    placeholders {layer}, {expert} and {projection}. ``projections`` are those of one expert in
    the order gate, up, down. ``moe_prefix`` begins the name of every tensor of an MoE block:
    one that starts so and fits no template is refused rather than copied.
    """

    model_type: str
    moe_prefix: str
    expert: str
    projections: tuple[str, str, str]
    router: str
    num_experts_key: str
    top_k_key: str
    score: Score
    renormalise: bool
    vllm_module: str
    num_groups_key: str | None = None

    def classify(self, name: str) -> Role | None:
        """Return the role of a tensor, or None if it is not part of an MoE block.

        :raises PruneError: if the name looks like MoE and fits no template of this family
        """
        if found := _pattern(self.expert, self.projections).fullmatch(name):
            return Role("expert", int(found["layer"]), int(found["expert"]))
        if found := _pattern(self.router, ()).fullmatch(name):
            return Role("router", int(found["layer"]))
        if _pattern(self.moe_prefix, ()).match(name):
            raise PruneError(
                f"tensor {name} belongs to an MoE block but is not known for {self.model_type}",
                hint="the checkpoint is of another format than the hub's; nothing was written",
            )
        return None

    def expert_name(self, layer: int, expert: int, projection: str) -> str:
        """Return the tensor name of one projection of one expert."""
        return self.expert.format(layer=layer, expert=expert, projection=projection)

    def router_name(self, layer: int) -> str:
        """Return the tensor name of the gate of a layer, [E, D]."""
        return self.router.format(layer=layer)

    def num_experts(self, config: Mapping[str, Any]) -> int:
        """Return E as config.json has it."""
        return _count(config, self.num_experts_key)

    def top_k(self, config: Mapping[str, Any]) -> int:
        """Return the number of active experts per token as config.json has it."""
        return _count(config, self.top_k_key)

    def num_groups(self, config: Mapping[str, Any]) -> int:
        """Return the number of router groups (1 where the family has none)."""
        return int(config.get(self.num_groups_key) or 1) if self.num_groups_key else 1


def _pattern(template: str, projections: tuple[str, ...]) -> re.Pattern[str]:
    pattern = re.escape(template)
    pattern = pattern.replace(r"\{layer\}", r"(?P<layer>\d+)")
    pattern = pattern.replace(r"\{expert\}", r"(?P<expert>\d+)")
    return re.compile(pattern.replace(r"\{projection\}", f"(?:{'|'.join(projections)})"))


def _count(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise PruneError(f"config.json has no usable {key} (found {value!r})")
    return value


LAYOUTS: Mapping[str, MoeLayout] = {
    "mixtral": MoeLayout(
        model_type="mixtral",
        moe_prefix="model.layers.{layer}.block_sparse_moe.",
        expert="model.layers.{layer}.block_sparse_moe.experts.{expert}.{projection}.weight",
        projections=("w1", "w3", "w2"),
        router="model.layers.{layer}.block_sparse_moe.gate.weight",
        num_experts_key="num_local_experts",
        top_k_key="num_experts_per_tok",
        score="softmax",
        renormalise=True,
        vllm_module="vllm.model_executor.models.mixtral",
    ),
}


def layout_of(config: Mapping[str, Any]) -> MoeLayout:
    """Return the layout for a config.json.

    :raises PruneError: for a family that is not in the table
    """
    model_type = config.get("model_type")
    layout = LAYOUTS.get(str(model_type))
    if layout is None:
        raise PruneError(
            f"model type {model_type!r} is not supported",
            hint=f"supported: {', '.join(sorted(LAYOUTS))}",
        )
    return layout
