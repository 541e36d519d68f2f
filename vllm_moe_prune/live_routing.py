"""`LiveRouting`: a routing function that takes one map's entry after another.

T tokens, E experts of the base, E' of the map, K routing columns. All that a map changes lies in
tensors of fixed shape that are written in place, so it also holds for a model whose computation
was recorded (torch.compile, CUDA graphs).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vllm_moe_prune.choice import Choice
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.routing import renormalised, route, scores

# Rows of W_RM behind the last new expert: scores are at least 0 and sum to more than 0, so such a
# row is below every real one. Not infinite: 0 * inf is not a number.
_NEVER = -1e30


class LiveRouting:
    """The routing function of one layer; equal to the base's own until `set` is called.

    Whatever drops experts only is two masks on the router's own choice; a W_RM that mixes scores is
    a product, which a recorded model of a family that can be mapped always makes.

    :param choice: how the base's own router chooses
    :param fixed_columns: keep K at the base's top-k and give unused columns the weight 0, as a
        recorded model needs; otherwise K is the map's top-k and fewer experts are computed
    """

    def __init__(
        self,
        num_experts: int,
        top_k: int,
        layout: MoeLayout,
        choice: Choice,
        *,
        fixed_columns: bool,
    ) -> None:
        self.num_experts, self.top_k = num_experts, top_k
        self.layout, self.choice = layout, choice
        self.fixed_columns = fixed_columns
        self.columns = self.active = top_k
        self._mappable = layout.mappable and choice.is_top_k
        self._multiplies = self._always_multiplies = fixed_columns and self._mappable
        # Made while the model is, hence on the device that the model is being made on.
        self.logit_mask = torch.zeros(num_experts, dtype=torch.float32)  # 0 or -inf
        self.score_mask = torch.zeros(num_experts, dtype=torch.float32)  # 0 or -inf
        self.w_rm = torch.eye(num_experts if self._mappable else 0, dtype=torch.float32)
        self.column_mask = torch.ones(top_k, dtype=torch.float32)  # 1, then 0
        self.slots = torch.arange(num_experts)  # what is chosen as j lies in slot slots[j]
        self._key: object = None  # of what is applied
        self.watching = False  # while it is, ``seen`` holds the base's scores [T, E] and ids [T, k]
        self.seen: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(
        self, hidden_states: torch.Tensor, gating_output: torch.Tensor, topk: int, renormalize: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose experts from the router's logits [T, E]; vLLM's custom_routing_function."""
        if self._multiplies:
            logits = gating_output.float() + self.logit_mask
            weights, ids = route(
                logits, self.w_rm, self.columns, score=self.layout.score, renormalise=False
            )
        else:
            masks = (self.logit_mask, self.score_mask)
            weights, ids = self.choice(hidden_states, gating_output, *masks, self.columns)
        if self.fixed_columns:
            weights = weights.where(self.column_mask > 0, 0.0)
        if self.choice.renormalises:
            weights = renormalised(weights)
        ids = self.slots[ids]
        if self.watching:
            self.seen = (scores(gating_output, self.layout.score), ids[:, : self.active])
        return weights, ids.to(torch.int32)

    def set(self, entry: LayerMap | None, w_rm: NDArray[np.float32] | None = None) -> None:
        """Choose as the map's entry says from now on; None is the base.

        Nothing is written if that is what it does already.

        :param w_rm: W_RM [E', E] of a mapped router
        :raises PruneError: if this router cannot be mapped so
        """
        key = None if entry is None else _key(entry, w_rm)
        if key == self._key:
            return
        if entry is None:
            self._set_base()
        else:
            self._set(entry, w_rm)
        self._key = key

    def _set_base(self) -> None:
        every = tuple(range(self.num_experts))
        self._drop(every, every, self.top_k, whole=False)

    def _set(self, entry: LayerMap, w_rm: NDArray[np.float32] | None) -> None:
        sliced = entry.router == "sliced"
        rows = entry.router_selection.kept if sliced else one_hot_ids(w_rm)
        if not (sliced or self._mappable):
            check_mapped(entry, rows, self.layout)
        slots = entry.slots
        if rows is None or (self._always_multiplies and not sliced):
            assert w_rm is not None
            self._multiply(torch.from_numpy(w_rm), slots, entry.top_k)
        else:
            self._drop(rows, slots, entry.top_k, whole=not sliced)

    def _drop(
        self, rows: tuple[int, ...], slots: tuple[int, ...], top_k: int, *, whole: bool
    ) -> None:
        """Choose among the scores of ``rows`` only, old ids in the order of the new experts.

        :param whole: the softmax is over all E
        """
        mask = torch.full((self.num_experts,), -torch.inf)
        mask[list(rows)] = 0.0
        logit_mask = torch.zeros_like(mask) if whole else mask
        if self._always_multiplies:
            self._multiply(torch.eye(self.num_experts)[list(rows)], slots, top_k, logit_mask)
            return
        self._multiplies = False
        self._write(logit_mask, mask, self._padded(rows, slots), top_k)

    def _multiply(
        self,
        w_rm: torch.Tensor,
        slots: tuple[int, ...],
        top_k: int,
        logit_mask: torch.Tensor | None = None,
    ) -> None:
        """Choose among the mapped scores: W_RM [E', E]."""
        self._multiplies = True
        matrix, none = torch.full(self.w_rm.shape, _NEVER), torch.zeros(self.num_experts)
        matrix[: len(w_rm)] = w_rm
        self.w_rm.copy_(matrix)
        found = self._padded(range(len(w_rm)), slots)
        self._write(none if logit_mask is None else logit_mask, none, found, top_k)

    def _padded(self, chosen: Sequence[int], slots: tuple[int, ...]) -> torch.Tensor:
        """Return the slot of all that can be chosen; columns without use lead to a kept expert."""
        found = torch.full((self.num_experts,), slots[0])
        found[list(chosen)] = torch.tensor(slots)
        return found

    def _write(
        self, logit_mask: torch.Tensor, score_mask: torch.Tensor, slots: torch.Tensor, top_k: int
    ) -> None:
        self.logit_mask.copy_(logit_mask)
        self.score_mask.copy_(score_mask)
        self.slots.copy_(slots)
        self.active = top_k
        if self.fixed_columns:
            assert top_k <= self.columns
            self.column_mask.copy_(torch.arange(self.columns) < top_k)
        else:
            self.columns = top_k


def one_hot_ids(matrix: NDArray[np.float32] | None) -> tuple[int, ...] | None:
    """Return the column of the 1 in each row of a matrix [E', E], None if it is not one-hot."""
    if matrix is None:
        return None
    ones = (matrix == 1).sum(axis=1) == 1
    if not (ones & ((matrix != 0).sum(axis=1) == 1)).all():
        return None
    ids = tuple(int(i) for i in matrix.argmax(axis=1))
    return ids if len(set(ids)) == len(ids) else None


def check_mapped(entry: LayerMap, rows: tuple[int, ...] | None, layout: MoeLayout) -> None:
    """Refuse a W_RM where more than the best scores chooses, unless it is the same as a slice.

    It is the same if it is one-hot and no expert's score depends on those of others.

    :param rows: of a W_RM that is one-hot
    :raises PruneError: naming the layer
    """
    if rows is None or not layout.is_corrected:
        raise PruneError(
            f"layer {entry.layer}: the router of a {layout.model_type} model cannot be mapped",
            hint="use a map with sliced routers",
        )


def _key(entry: LayerMap, w_rm: NDArray[np.float32] | None) -> tuple[object, ...]:
    """Return all that decides the choice."""
    rows = entry.router_selection.kept
    mixed = b"" if w_rm is None else w_rm.tobytes()
    return (entry.router, rows, entry.slots, entry.num_kept, entry.top_k, mixed)
