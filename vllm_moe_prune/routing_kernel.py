"""Mapped routing as one Triton kernel; what it computes is `routing.route`, its oracle.

T tokens, E experts before pruning, E' after, k active experts per token. PyTorch takes up to 15
kernels for it, each a few microseconds of every decode step on a GPU. Here a program has 16 tokens:
it reads their logits, keeps scores, choice and weights in registers and writes only the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from vllm_moe_prune.routing import LEAST_SUM

if TYPE_CHECKING:
    from vllm_moe_prune.layout import Score

# A row of logits [E] and 16 rows of scores [E'] must fit in the registers of a program.
MAX_EXPERTS, MAX_KEPT = 1024, 512
_ROWS = 16  # tokens of a program: the fewest that `tl.dot` takes
_CHUNK = 32  # experts whose scores are mapped at a time


# What differs by layer or step is no constant: each value would be compiled for.
@triton.jit(do_not_specialize=["num_tokens", "stride", "num_experts", "num_kept"])  # type: ignore[untyped-decorator]
def route_kernel(
    logits_ptr: tl.tensor,
    map_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    num_tokens: tl.tensor,
    stride: tl.tensor,
    num_experts: tl.tensor,
    num_kept: tl.tensor,
    TOP_K: tl.constexpr,
    SIGMOID: tl.constexpr,
    MATRIX: tl.constexpr,
    RENORMALISE: tl.constexpr,
    LEAST_SHARE: tl.constexpr,
    LEAST_SUM: tl.constexpr,
    EXPERTS: tl.constexpr,
    KEPT: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """Route ROWS tokens; EXPERTS, KEPT and COLUMNS are E, E' and k rounded up to powers of two.

    ``map_ptr`` is W_RM transposed, [E, E'], with MATRIX, else the ids [E'] of a one-hot one.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    # Rows behind the last token compute that one again, and their results are not stored.
    logits = logits_ptr + tl.minimum(rows, num_tokens - 1).to(tl.int64)[:, None] * stride
    highest = tl.zeros([ROWS], dtype=tl.float32)
    total = highest
    if not SIGMOID:
        experts = tl.arange(0, EXPERTS)[None, :]
        row = tl.load(logits + experts, mask=experts < num_experts, other=-float("inf"))
        row = row.to(tl.float32)
        highest = tl.max(row, axis=1)
        total = tl.sum(tl.exp(row - highest[:, None]), axis=1)
    new = tl.arange(0, KEPT)[None, :]
    if MATRIX:
        mapped = tl.zeros([ROWS, KEPT], dtype=tl.float32)
        for begin in range(0, num_experts, CHUNK):
            part = begin + tl.arange(0, CHUNK)
            inside = part < num_experts
            x = tl.load(logits + part[None, :], mask=inside[None, :], other=-float("inf"))
            x = x.to(tl.float32)
            sigmoid = 1 / (1 + tl.exp(-x))
            score = sigmoid if SIGMOID else tl.exp(x - highest[:, None]) / total[:, None]
            w_rm = tl.load(
                map_ptr + part[:, None] * num_kept + new,
                mask=inside[:, None] & (new < num_kept),
                other=0.0,
            )
            mapped = tl.dot(score, w_rm, mapped, input_precision="ieee")
    else:
        old = tl.load(map_ptr + new, mask=new < num_kept, other=0)
        x = tl.load(logits + old).to(tl.float32)
        sigmoid = 1 / (1 + tl.exp(-x))
        mapped = sigmoid if SIGMOID else tl.exp(x - highest[:, None]) / total[:, None]
    mapped = tl.where(new < num_kept, mapped, -float("inf"))
    columns = tl.arange(0, COLUMNS)[None, :]
    weights = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    ids = tl.zeros([ROWS, COLUMNS], dtype=tl.int32)
    for column in range(TOP_K):
        best, chosen = tl.max(mapped, axis=1, return_indices=True)
        # Of scores that are not numbers the largest may lie behind E', where no expert is.
        chosen = tl.minimum(chosen, num_kept - 1)
        weights = tl.where(columns == column, best[:, None], weights)
        ids = tl.where(columns == column, chosen[:, None], ids)
        mapped = tl.where(new == chosen[:, None], -float("inf"), mapped)
    if RENORMALISE:
        total = tl.sum(weights, axis=1)
        # As `routing.renormalised`; without negative entries in W_RM LEAST_SHARE is 0.
        least = tl.maximum(LEAST_SHARE * tl.sum(tl.abs(weights), axis=1), LEAST_SUM)
        signed = tl.where(total < 0, -least, least)
        total = tl.where(tl.abs(total) >= least, total, signed)
        weights = weights / total[:, None]
    at = rows.to(tl.int64)[:, None] * TOP_K + columns
    stored = (rows < num_tokens)[:, None] & (columns < TOP_K)
    tl.store(weights_ptr + at, weights, mask=stored)
    tl.store(ids_ptr + at, ids, mask=stored)


def fits(num_experts: int, num_kept: int) -> bool:
    """Whether the kernel takes E and E'."""
    return num_experts <= MAX_EXPERTS and num_kept <= MAX_KEPT


def constants(
    num_experts: int,
    num_kept: int,
    top_k: int,
    *,
    score: Score,
    matrix: bool,
    renormalise: bool,
    least_share: float,
) -> dict[str, Any]:
    """Return the kernel's constants for a layer.

    :param least_share: as `routing.renormalised` has it; 0 where no weight is negative
    """
    return {
        "TOP_K": top_k,
        "SIGMOID": score == "sigmoid",
        "MATRIX": matrix,
        "RENORMALISE": renormalise,
        "LEAST_SHARE": least_share,
        "LEAST_SUM": LEAST_SUM,
        "EXPERTS": triton.next_power_of_2(num_experts),
        "KEPT": max(16, triton.next_power_of_2(num_kept)),  # what `tl.dot` takes at least
        "COLUMNS": triton.next_power_of_2(top_k),
        "ROWS": _ROWS,
        "CHUNK": _CHUNK,
    }


def num_warps(num_kept: int) -> int:
    """Return the warps of a program: more where it holds more scores."""
    return 8 if num_kept > 128 else 4


def route_fused(
    logits: torch.Tensor,
    chosen_map: torch.Tensor,
    top_k: int,
    *,
    score: Score,
    renormalise: bool,
    least_share: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose experts through a router map.

    :param logits: [T, E], any float dtype, contiguous along E
    :param chosen_map: W_RM transposed, [E, E'] float32, or ids [E'] of a one-hot W_RM, int32;
        contiguous
    :returns: weights [T, k] in float32 and expert ids [T, k] in int32, best first
    """
    assert logits.stride(-1) == 1, "logits are strided along the experts"
    tokens, experts = logits.shape
    weights = logits.new_empty((tokens, top_k), dtype=torch.float32)
    ids = logits.new_empty((tokens, top_k), dtype=torch.int32)
    if tokens:
        kept = chosen_map.shape[-1]
        route_kernel[(triton.cdiv(tokens, _ROWS),)](
            logits,
            chosen_map,
            weights,
            ids,
            tokens,
            logits.stride(0),
            experts,
            kept,
            **constants(
                experts,
                kept,
                top_k,
                score=score,
                matrix=chosen_map.dim() == 2,
                renormalise=renormalise,
                least_share=least_share,
            ),
            num_warps=num_warps(kept),
            num_stages=1,
        )
    return weights, ids
