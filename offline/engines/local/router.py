"""What the routers of transformers' models return and where they stand, family by family, as data.

The adapter of a model is chosen once, when its MoE layers are found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layout import MoeLayout

Part = Literal["logits", "weights", "ids"]


class Routed(NamedTuple):
    """How a router spreads T tokens over E experts, k for each."""

    logits: torch.Tensor  # [T, E]
    weights: torch.Tensor  # [T, k]
    ids: torch.Tensor  # [T, k]


@dataclass(frozen=True, slots=True)
class RouterAdapter:
    """The router of one family.

    ``name`` is its attribute in the MoE block and ``returns`` the order of what it returns.
    ``scale`` is its attribute with a number that all weights are multiplied with, if it has one.
    ``bias`` is the block's attribute with a correction bias that the router is given, where it has
    none itself, and ``batched`` says that it wants [B, T, D]. Where experts are ``dense``, each
    computes every token, until the block is made sparse (dense.py). ``gate`` is the router's
    attribute with the gate, where that is not the router; it gives the logits. A ``bare`` router is
    a matrix whose block chooses, until it is taught to (dense.py).
    """

    name: str = "gate"
    returns: tuple[Part, Part, Part] = ("logits", "weights", "ids")
    scale: str | None = None
    dense: bool = False
    bias: str | None = None
    batched: bool = False
    gate: str | None = None
    bare: bool = False

    def of(self, block: torch.nn.Module) -> torch.nn.Module:
        """Return the router of an MoE block.

        :raises PruneError: if it has none of this name
        """
        router = getattr(block, self.name, None)
        if not isinstance(router, torch.nn.Module):
            raise PruneError(
                f"an MoE block of this model ({type(block).__name__}) has no {self.name!r}",
                hint="use the transformers version that this package asks for",
            )
        return router

    def call(self, block: torch.nn.Module, hidden: torch.Tensor) -> Any:
        """Return what a block's router returns for its input [T, D]."""
        more = () if self.bias is None else (self.bias_of(block),)
        return self.of(block)(hidden[None] if self.batched else hidden, *more)

    def bias_of(self, block: torch.nn.Module) -> torch.Tensor:
        """Return the correction bias [E] of a block."""
        place = (self.of(block), _BIAS) if self.bias is None else (block, self.bias)
        bias: torch.Tensor = getattr(*place)
        return bias

    def gate_of(self, router: torch.nn.Module) -> torch.Tensor:
        """Return the gate's weight [E, D]."""
        place: Any = router if self.gate is None else getattr(router, self.gate)
        weight: torch.Tensor = place.weight.detach()
        return weight

    def show_logits(self, router: torch.nn.Module) -> None:
        """Let a router return its gate's logits, which may be probabilities otherwise."""
        if self.gate is None:
            return
        seen: list[torch.Tensor] = []
        gate: torch.nn.Module = getattr(router, self.gate)
        gate.register_forward_hook(lambda _, __, logits: seen.append(logits))
        router.register_forward_hook(lambda _, __, output: (seen.pop(), *output[1:]))

    def read(self, output: Any) -> Routed:
        """Return the parts of what the router returned.

        :raises PruneError: if it cannot be that
        """
        found = dict(zip(self.returns, output, strict=False))
        if len(output) != len(self.returns) or found["ids"].is_floating_point():
            raise PruneError(
                f"a router of this model returns something else than {', '.join(self.returns)}",
                hint="use the transformers version that this package asks for",
            )
        return Routed(**found)

    def write(self, routed: Routed) -> tuple[torch.Tensor, ...]:
        """Return the parts as the router returns them."""
        return tuple(getattr(routed, part) for part in self.returns)

    def scale_of(self, router: torch.nn.Module) -> float:
        """Return what a router multiplies all weights with."""
        return 1.0 if self.scale is None else float(getattr(router, self.scale))


_BIAS = "e_score_correction_bias"
_LLAMA4 = RouterAdapter("router", dense=True)
_GEMMA4 = RouterAdapter("router", gate="proj")
_GRANITE = RouterAdapter("router", ("ids", "weights", "logits"))
# Families whose router is a `gate` and returns (logits, weights, ids) are not listed.
ROUTERS: Mapping[str, RouterAdapter] = {
    "afmoe": RouterAdapter("router", bias="expert_bias", batched=True, gate="gate"),
    "deepseek_v2": RouterAdapter(scale="routed_scaling_factor"),
    "gemma4": _GEMMA4,
    "gemma4_text": _GEMMA4,
    "gpt_oss": RouterAdapter("router"),
    "granitemoe": _GRANITE,
    "granitemoehybrid": _GRANITE,
    "granitemoeshared": _GRANITE,
    "hunyuan_v1_moe": RouterAdapter(gate="wg"),
    "hy_v3": RouterAdapter(bias=_BIAS),
    "jamba": RouterAdapter("router", bare=True),
    "lfm2_moe": RouterAdapter(bias="expert_bias"),
    "llama4": _LLAMA4,
    "llama4_text": _LLAMA4,
    "minimax_m2": RouterAdapter(bias=_BIAS),
    "phimoe": RouterAdapter("router"),
}


def router_of(layout: MoeLayout) -> RouterAdapter:
    """Return the adapter of a family."""
    return ROUTERS.get(layout.model_type, RouterAdapter())
