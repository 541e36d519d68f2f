"""The MoE layers of a model that vLLM holds, watched while they compute: routers and experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.vllm_compat.moe_layers import layer_number

_PIECE = 1 << 18  # numbers in float32 at the same time on a CPU: what its cache holds


@dataclass(frozen=True, slots=True)
class SeenLayer:
    """What one layer did for the T rows of a step, padding included."""

    logits: torch.Tensor  # [T, E] of the router
    weights: torch.Tensor  # [T, k] float32, whatever the model scales them by included
    ids: torch.Tensor  # [T, k]
    outputs: torch.Tensor  # [T, k, D] of each token's k experts, before they are weighted
    after: torch.Tensor  # [T, k] with which outputs are added up: weights, or 1


@dataclass(slots=True)
class WatchedLayer:
    """The router and the experts of one decoder layer, both replaced by what notes and goes on.

    vLLM's own router chooses, so whatever a family does there is what is seen. The experts' own
    fused method is called once for each column of the choice, with a weight of 1: that gives the
    raw output of every token's expert, in whatever format and kernel the experts have, for the
    arithmetic of the layer itself. The weighted sum is the layer's output.

    ``block`` is given where transformers' code chooses: vLLM's router is handed the weights then,
    and the logits are those of the gate beside the experts.
    """

    number: int
    runner: Any
    hidden: int
    see: Callable[[int, SeenLayer], None]
    watching: Callable[[], bool]
    block: torch.nn.Module | None = None
    _logits: torch.Tensor | None = None

    @property
    def num_experts(self) -> int:
        """E."""
        return int(self.runner.routed_experts.global_num_experts)

    def watch(self) -> None:
        """Take the places of the router's and the experts' methods.

        :raises PruneError: if the kernel chooses experts itself
        """
        experts, router = self.runner.routed_experts, self.runner.router
        if experts.quant_method.is_monolithic:
            raise PruneError(
                f"layer {self.number}: vLLM's kernel ({type(experts.quant_method).__name__}) "
                "routes by itself, so that single experts cannot be seen",
                hint="use --engine transformers, or another kernel of vLLM's",
            )
        select, apply = router.select_experts, experts.forward_modular

        def selected(*, router_logits: torch.Tensor, **named: Any) -> Any:
            if self.block is None:
                self._logits = router_logits
            return select(router_logits=router_logits, **named)

        def applied(
            x: torch.Tensor,
            topk_weights: torch.Tensor,
            topk_ids: torch.Tensor,
            shared_experts: Any = None,
            shared_experts_input: torch.Tensor | None = None,
        ) -> Any:
            shared = (shared_experts, shared_experts_input)
            if not self.watching():
                return apply(x, topk_weights, topk_ids, *shared)
            return self._apply(apply, x, topk_weights, topk_ids, shared)

        router.select_experts, experts.forward_modular = selected, applied
        for name, part in self.block.named_children() if self.block is not None else ():
            if name != "experts":
                part.register_forward_hook(self._note_logits)

    def _note_logits(self, _: torch.nn.Module, __: Any, output: Any) -> None:
        """Note the logits [T, E] of a gate, which comes before the experts, if it is one."""
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, torch.Tensor) and first.shape[1:] == (self.num_experts,):
            self._logits = first

    def _apply(
        self,
        apply: Callable[..., torch.Tensor],
        x: torch.Tensor,
        weights: torch.Tensor,
        ids: torch.Tensor,
        shared: tuple[Any, Any],
    ) -> torch.Tensor:
        """Return the output [T, D] of the routed experts, and show how it came about."""
        before, after = torch.ones_like(weights), weights
        if self.runner.routed_experts.apply_router_weight_on_input:
            before, after = after, before
        width = min(self.hidden, x.shape[1])  # less where experts are behind a projection
        outputs = x.new_empty(*ids.shape, width)
        for column in range(ids.shape[1]):
            one = slice(column, column + 1)
            # Shared experts may run inside of the experts' method: once.
            given = shared if column == 0 else (None, None)
            # Copies: a kernel may write into what it is given.
            found = apply(x, before[:, one].clone(), ids[:, one].clone(), *given)
            outputs[:, column] = found[:, :width]
        total = _added_up(outputs, after)
        assert self._logits is not None
        scaled = weights * self.runner.routed_scaling_factor  # 1, or what comes later
        shown = scaled if after is weights else after
        reduced = self._reduced(outputs)
        self.see(self.number, SeenLayer(self._logits, scaled, ids, reduced, shown))
        return total

    def _reduced(self, outputs: torch.Tensor) -> torch.Tensor:
        """Add up the parts of the outputs that tensor-parallel ranks have of each expert."""
        from vllm.distributed import tensor_model_parallel_all_reduce

        parallel = self.runner.moe_config
        if (
            parallel.tp_size == 1 and parallel.ep_size == 1
        ) or self.runner._fused_output_is_reduced:
            return outputs
        summed: torch.Tensor = tensor_model_parallel_all_reduce(outputs)
        return summed


def _added_up(outputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the sum [T, D] of outputs [T, k, D] with weights [T, k], made in float32."""
    total = outputs.new_empty(len(outputs), outputs.shape[2])
    step = max(_PIECE // outputs[0].numel(), 1) if outputs.device.type == "cpu" else len(outputs)
    for begin in range(0, len(outputs), step):
        part = slice(begin, begin + step)
        total[part] = (weights[part, None].float() @ outputs[part].float())[:, 0]
    return total


def watch_layers(
    model: torch.nn.Module,
    hidden: int,
    see: Callable[[int, SeenLayer], None],
    watching: Callable[[], bool],
) -> dict[int, int]:
    """Let ``see`` take what every MoE layer does while ``watching`` says so.

    :param hidden: D
    :returns: decoder layer -> E
    :raises PruneError: if a layer's kernel chooses experts itself
    """
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "routed_experts") and hasattr(module, "router"):
            chosen_before = hasattr(module, "_moe_state")  # in transformers' code
            block = model.get_submodule(name.rpartition(".")[0]) if chosen_before else None
            layer = WatchedLayer(layer_number(name), module, hidden, see, watching, block)
            layer.watch()
            found[layer.number] = layer.num_experts
    return found


def tensor_parallel() -> tuple[int, int]:
    """Return this worker's rank among tensor-parallel workers, and how many there are."""
    from vllm.distributed import (
        get_tensor_model_parallel_rank,
        get_tensor_model_parallel_world_size,
    )

    return get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
