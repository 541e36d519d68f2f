"""Constant vectors in place of experts, in a live transformers model."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from vllm_moe_prune.constant_experts import ConstantExperts


class Constants:
    """The vectors that stand for some experts of one layer while a map says so.

    The block hands ids and weights to its experts, whatever chose them. What they say of constant
    ones is taken out before the experts see it, and added to what they give.

    :param experts: the module with all E experts
    """

    def __init__(self, experts: torch.nn.Module) -> None:
        self._experts = experts
        self._hooks: list[RemovableHandle] = []
        self._constants: ConstantExperts | None = None
        self._added: torch.Tensor | None = None  # [T, D] for the call under way

    def set(self, constants: ConstantExperts | None) -> None:
        """Let vectors stand for experts from now on; None: for none."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._constants = [], constants
        if constants is not None:
            self._hooks.append(self._experts.register_forward_pre_hook(self._before))
            self._hooks.append(self._experts.register_forward_hook(self._after))

    def _before(self, _: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, ids, weights = given
        assert self._constants is not None
        weights, ids, self._added = self._constants(weights, ids)
        return hidden, ids, weights

    def _after(self, _: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        added, self._added = self._added, None
        assert added is not None
        return output + added.to(output.dtype).view_as(output)
