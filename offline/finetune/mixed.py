"""Fused experts in the precision that autocast asks for.

transformers multiplies them in the dtype of their weights, whatever autocast says: with weights in
float32 that is float32, in the part of the model that has nearly all of its work.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

_NAME = "grouped_mm_autocast"


def autocast_experts(model: Any) -> None:
    """Let a model's experts follow autocast, if transformers has them grouped."""
    if getattr(model.config, "_experts_implementation", None) == "grouped_mm":
        ALL_EXPERTS_FUNCTIONS.register(_NAME, _forward)
        model.set_experts_implementation(_NAME)


def _forward(experts: torch.nn.Module, hidden: torch.Tensor, *routed: torch.Tensor) -> torch.Tensor:
    """Compute experts for hidden states [T, D] and what a router returned."""
    given, device = experts, hidden.device.type
    if torch.is_autocast_enabled(device):
        given = _Cast(experts, torch.get_autocast_dtype(device))  # type: ignore[assignment]
    output: torch.Tensor = grouped_mm_experts_forward(given, hidden, *routed)
    return output


class _Cast:
    """A module whose weights and biases are cast when asked for; gradients go to the originals."""

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype) -> None:
        self._module, self._dtype = module, dtype

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        return value.to(self._dtype) if isinstance(value, torch.Tensor) else value
