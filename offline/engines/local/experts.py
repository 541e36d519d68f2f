"""Makes a live transformers model route and compute as a routing map says, without new weights.

transformers fuses the experts of a layer into ``gate_up_proj`` [E, 2I, D], or ``up_proj`` [E, I, D]
where nothing gates, and ``down_proj`` [E, D, I], and has a router beside them, which the family's
`RouterAdapter` reads. Dropped experts stay in memory: the router just cannot choose them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from offline.engines.base import ExpertUse
from offline.engines.local.constants import Constants
from offline.engines.local.correction import Correction
from offline.engines.local.dense import make_choosing, make_sparse
from offline.engines.local.router import Routed, RouterAdapter, router_of
from offline.engines.needs import check_routable
from vllm_moe_prune.constant_experts import ConstantExperts
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.routing import route, scores
from vllm_moe_prune.routing_map import RoutingMap
from vllm_moe_prune.substitutes import check_substitutable

_LAYER = re.compile(r"\.layers\.(\d+)\.")
_FIRST = ("gate_up_proj", "up_proj")  # the second where nothing gates
_COLUMNS = 1 << 20  # numbers of each expert that are in float32 at the same time


@dataclass(slots=True)
class LayerControl:
    """The experts of one decoder layer, switchable between the base and a map.

    While there is a ``use``, what the router does is added to it, restricted to those tokens [T]
    that are ``real``, which padding is not. ``block`` is the module that holds both.
    """

    layer: int
    block: torch.nn.Module
    router: torch.nn.Module
    adapter: RouterAdapter
    experts: Any
    layout: MoeLayout
    use: ExpertUse | None = None
    real: torch.Tensor | None = None
    _pristine: dict[str, torch.Tensor] = field(default_factory=dict)
    _combined: torch.Tensor | None = None  # the W_EM [E', E] that the weights now are
    _rule: _Rule | None = None
    _correction: Correction | None = None
    _constants: Constants = field(init=False)

    @property
    def num_experts(self) -> int:
        """E of the base."""
        return int(self.experts.down_proj.shape[0])

    @property
    def width(self) -> int:
        """D of what an expert takes and gives: the model's, or that of a latent projection."""
        return int(self.experts.down_proj.shape[2 if self.is_transposed else 1])

    @property
    def device(self) -> torch.device:
        """Where the experts are."""
        found: torch.device = self.experts.down_proj.device
        return found

    @property
    def fused(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The two tensors of all experts, as they are laid out."""
        first = next(name for name in _FIRST if hasattr(self.experts, name))
        return getattr(self.experts, first), self.experts.down_proj

    def __post_init__(self) -> None:
        self.router.register_forward_hook(self._after_router)
        self._constants = Constants(self.experts)

    def _after_router(self, _: Any, __: Any, output: Any) -> tuple[torch.Tensor, ...] | None:
        """Replace the router's choice by the map's; note what is chosen."""
        routed = self.adapter.read(output)
        if self._rule is not None:
            weights, ids = self._rule(routed.logits)
            weights = (weights * self.adapter.scale_of(self.router)).to(routed.weights.dtype)
            routed = Routed(routed.logits, weights, ids)
        if self.use is not None:
            self._note(self.use, routed.logits, routed.ids)
        return None if self._rule is None else self.adapter.write(routed)

    def _note(self, use: ExpertUse, logits: torch.Tensor, ids: torch.Tensor) -> None:
        if self.real is not None:
            real = self.real.to(ids.device)
            logits, ids = logits[real], ids[real]
        counts = np.bincount(ids.flatten().cpu().numpy(), minlength=self.num_experts)
        np.add(use.tokens, counts, out=use.tokens)
        sums = scores(logits, self.layout.score).double().sum(dim=0)
        np.add(use.scores, sums.cpu().numpy(), out=use.scores)

    def apply(self, routing_map: RoutingMap | None) -> None:
        """Behave as the map's entry for this layer says, or as the base.

        A copy of the base's experts is made in host memory for the first map with a continuous
        W_EM and kept until the base is asked for, so that a search pays for it once.
        """
        if routing_map is not None:
            check_routable(self.layout, routing_map.num_groups)
        entry = routing_map.by_layer()[self.layer] if routing_map else None
        self._substitute(routing_map, entry)
        if self.layout.is_corrected:
            if self._correction is None:
                bias = self.adapter.bias_of(self.block)
                self._correction = Correction.of(self.router, bias)
            self._correction.set(entry)
            return
        if routing_map is None or entry is None:
            self._restore()
            self._pristine.clear()
            self._rule = None
            return
        if entry.experts.kept is None:
            self._combine(torch.from_numpy(routing_map.expert_matrix(entry)))
        else:
            self._restore()
        self._rule = _Rule.of(entry, routing_map, self.layout, self.device)

    def _substitute(self, routing_map: RoutingMap | None, entry: LayerMap | None) -> None:
        if routing_map is None or entry is None or entry.substituted is None:
            self._constants.set(None)
            return
        check_substitutable(self.layout)
        device = self.experts.down_proj.device
        self._constants.set(ConstantExperts.among_all(routing_map, entry, device))

    def _restore(self) -> None:
        if self._combined is not None:
            with torch.no_grad():
                for name, weight in self._pristine.items():
                    getattr(self.experts, name).copy_(weight)
        self._combined = None

    def _combine(self, w_em: torch.Tensor) -> None:
        """Write new expert j = sum_i w_em[j, i] * old expert i into the first E' slots.

        Slots from E' on keep what they have: the router cannot choose them.
        """
        if self._combined is not None and torch.equal(self._combined, w_em):
            return
        self._combined = w_em
        for name, weight in self._stacked():
            if name not in self._pristine:
                self._pristine[name] = _host_copy(weight.detach())
            old = self._pristine[name].flatten(1)  # [E, A]
            new = weight.detach().view(len(old), -1)
            matrix = w_em.to(weight.device)
            for at in range(0, old.shape[1], _COLUMNS):
                part = slice(at, at + _COLUMNS)
                new[: len(matrix), part] = matrix @ _columns(old, part, weight.device).float()

    def _stacked(self) -> list[tuple[str, torch.Tensor]]:
        """Return all that the experts consist of, biases too: each [E, ...]."""
        named = list(self.experts.named_parameters(recurse=False))
        assert all(len(weight) == self.num_experts for _, weight in named)
        return named

    @property
    def is_transposed(self) -> bool:
        """Whether the experts are [E, D, 2I] and [E, I, D]."""
        return bool(getattr(self.experts, "is_transposed", False))

    @property
    def is_interleaved(self) -> bool:
        """Whether gate and up take turns along 2I; otherwise up follows gate."""
        return not getattr(self.experts, "is_concatenated", True)

    def scores_of(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the base router's scores [T, E] in float32 for the block's input [T, D]."""
        rule, self._rule = self._rule, None
        logits = self.adapter.read(self.adapter.call(self.block, hidden)).logits
        self._rule = rule
        return scores(logits, self.layout.score)

    def output_of(
        self, expert: int, hidden: torch.Tensor, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the output [T, D] of one expert alone for the block's input [T, D].

        :param weights: [T], with which it is weighted; 1 if not given
        """
        ids = torch.full((len(hidden), 1), expert, device=hidden.device)
        given = hidden.new_ones(len(hidden)) if weights is None else weights.to(hidden.dtype)
        output: torch.Tensor = self.experts(hidden, ids, given[:, None])
        return output


@dataclass(frozen=True, slots=True)
class _Rule:
    """How the router of one layer chooses under a map: plain tensors, ready to use."""

    rows: torch.Tensor | None  # [E'] gate rows that remain, None if all E do
    w_rm: torch.Tensor  # [E', gate rows] float32
    slots: torch.Tensor | None  # [E'] old id of choice j, None if they are the same
    top_k: int
    layout: MoeLayout

    @classmethod
    def of(
        cls, entry: LayerMap, routing_map: RoutingMap, layout: MoeLayout, device: torch.device
    ) -> _Rule:
        rows = None
        if entry.router == "sliced":
            rows = torch.tensor(entry.router_selection.kept, device=device)
            w_rm = torch.eye(entry.num_choices)
        else:
            w_rm = torch.from_numpy(routing_map.router_matrix(entry))
        merged = entry.experts.kept is None
        slots = None if merged else torch.tensor(entry.slots, device=device)
        return cls(rows, w_rm.to(device), slots, entry.top_k, layout)

    def __call__(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weights and ids [T, k] of the experts chosen from the logits [T, E]."""
        weights, ids = route(
            logits if self.rows is None else logits[:, self.rows],
            self.w_rm,
            self.top_k,
            score=self.layout.score,
            renormalise=self.layout.renormalise,
        )
        return weights, ids if self.slots is None else self.slots[ids]


def _host_copy(weight: torch.Tensor) -> torch.Tensor:
    """Return a copy in host memory: a GPU that holds the experts seldom has room for them twice."""
    copy = torch.empty_like(weight, device="cpu", pin_memory=weight.is_cuda)
    return copy.copy_(weight)


def _columns(rows: torch.Tensor, part: slice, device: torch.device) -> torch.Tensor:
    """Return columns of rows [E, A] on a device; each row is contiguous, so copied as it lies."""
    if rows.device == device:
        return rows[:, part]
    found = torch.empty_like(rows[:, part], device=device)
    for row, source in zip(found, rows, strict=True):
        row.copy_(source[part], non_blocking=True)
    return found


def find_layers(model: torch.nn.Module, layout: MoeLayout) -> dict[int, LayerControl]:
    """Find the router and the fused experts of every layer that has them.

    Blocks that compute all experts densely are changed (see dense.py).

    :returns: decoder layer -> its control
    :raises PruneError: if the model holds its experts in another way
    """
    if layout.zero_experts_key is not None:
        raise PruneError(
            f"routers of {layout.model_type} choose zero experts, too, which show nothing: "
            "not scored or searched",
            hint="choose the experts by hand: a routing map for `vmprune build`",
        )
    adapter, found = router_of(layout), dict[int, LayerControl]()
    for name, module in model.named_modules():
        experts = getattr(module, "experts", None)
        layer = _LAYER.search(name + ".")
        if layer is None or not _are_fused(experts):
            continue
        router, number = adapter.of(module), int(layer[1])
        adapter.show_logits(router)
        if adapter.dense:
            make_sparse(module)
        if adapter.bare:
            make_choosing(module)
        found[number] = LayerControl(number, module, router, adapter, experts, layout)
    if not found:
        raise PruneError(
            f"found no fused experts in this {layout.model_type} model",
            hint="use the transformers version that this package asks for",
        )
    return found


def _are_fused(experts: Any) -> bool:
    down = getattr(experts, "down_proj", None)
    first = any(hasattr(experts, name) for name in _FIRST)
    return first and isinstance(down, torch.Tensor) and down.ndim == 3


def decoder_of(model: Any) -> Any:
    """Return the part of a causal language model with its embedding, layers and last norm."""
    decoder = model.get_decoder()
    # Llama-4's says that it is its own decoder.
    return decoder if hasattr(decoder, "layers") else decoder.model
