"""How a matrix is stored, told from the names, types and shapes of its parts: no torch here.

Every format that quantisers write of a `Linear` is a matrix of codes, one per number, and what
turns them into numbers: scales, zero points, and the order in which codes are packed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.rewrite import COMBINABLE, TensorInfo
from vllm_moe_prune.roles import BESIDE_STACKED, PARTS, WEIGHT

# Of activations, and what is added to a product: no part of the matrix.
ASIDE = frozenset({"input_scale", "input_zero_point", "input_global_scale", "bias"})
KNOWN = "known: unquantised, FP8, MXFP8, INT8, INT4 and the like, NVFP4, MXFP4, GPTQ, AWQ"

# ``plain``: numbers; ``codes``: one to an entry; ``packed``: several to an int32 along a row;
# ``fp4``: two to a byte; ``gptq``, ``awq``: several to an int32 of the transposed matrix, along
# its columns and its rows.
Codes = Literal["plain", "codes", "packed", "fp4", "gptq", "awq"]
_FP8 = ("F8_E4M3", "F8_E5M2")
_EXPONENTS = ("U8", "F8_E8M0")  # of scales that are powers of two
_FP8_SCALES = "_scale_inv"  # of a stacked tensor, as transformers has them
_WORD = 32
_BITS = {"gptq": (2, 4, 8), "awq": (4,)}


@dataclass(frozen=True, slots=True)
class Form:
    """The name of a format, how its codes lie, and how many numbers the matrix has.

    The last is a little too large where rows are padded to whole words.
    """

    name: str
    codes: Codes
    numbers: int


def form_of(parts: Mapping[str, TensorInfo]) -> Form | None:
    """Return the form of a matrix with these parts, or None if it is none that is known.

    :param parts: part (as in roles.py) -> header of the tensor
    """
    own = parts.keys() - ASIDE
    if WEIGHT in own:
        return _whole(parts, own - {WEIGHT})
    if "weight_packed" in own:
        return _packed(parts, own - {"weight_packed"})
    if {"qweight", "qzeros", "scales"} == own - {"g_idx"}:
        return _transposed(parts)
    return None


def _whole(parts: Mapping[str, TensorInfo], own: frozenset[str] | set[str]) -> Form | None:
    weight = parts[WEIGHT]
    numbers = prod(weight.shape)
    if not own:
        return Form("unquantised", "plain", numbers) if weight.dtype in COMBINABLE else None
    if weight.dtype == "U8" and own == {"weight_scale", "weight_scale_2"}:
        return Form("NVFP4", "fp4", 2 * numbers)
    scale = own & {"weight_scale", "weight_scale_inv"}
    if len(scale) != 1 or own - scale - {"weight_zero_point", "weight_g_idx"}:
        return None
    if weight.dtype in _FP8:
        mx = parts[min(scale)].dtype in _EXPONENTS
        return Form("MXFP8" if mx else "FP8", "codes", numbers)
    return Form("INT8", "codes", numbers) if weight.dtype == "I8" else None


def _packed(parts: Mapping[str, TensorInfo], own: frozenset[str] | set[str]) -> Form | None:
    packed = parts["weight_packed"]
    if packed.dtype == "U8":
        if own == {"weight_scale", "weight_global_scale"}:
            return Form("NVFP4", "fp4", 2 * prod(packed.shape))
        if own == {"weight_scale"} and parts["weight_scale"].dtype in _EXPONENTS:
            return Form("MXFP4", "fp4", 2 * prod(packed.shape))
        return None
    needed = {"weight_scale", "weight_shape"}
    if packed.dtype != "I32" or not needed <= own <= needed | {"weight_zero_point", "weight_g_idx"}:
        return None
    return Form("INT4", "packed", 8 * prod(packed.shape))  # as nearly all are; the shape decides


def _transposed(parts: Mapping[str, TensorInfo]) -> Form | None:
    """GPTQ packs [K, N] along K, AWQ along N; both pack zero points along N."""
    words, zeros, scales = parts["qweight"], parts["qzeros"], parts["scales"]
    if {words.dtype, zeros.dtype} != {"I32"} or scales.dtype not in COMBINABLE:
        return None
    if not all(len(one.shape) == 2 and min(one.shape) for one in (words, zeros, scales)):
        return None
    columns = scales.shape[1]
    bits = _WORD * zeros.shape[1] / columns
    codes: Codes = "gptq" if words.shape[1] == columns else "awq"
    if bits not in _BITS[codes] or (codes == "awq" and words.shape[1] != zeros.shape[1]):
        return None
    return Form(codes.upper(), codes, int(prod(words.shape) * _WORD / bits))


def modules_of(tensors: Mapping[str, TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    """Return name up to its part -> part -> header, of all tensors.

    What has a name of its own, such as a stacked tensor, has the part "", or ``weight`` where
    there are scales of that name; those that are not FP8's have parts that no form has.
    """
    modules: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        module, part = _place(name, tensors)
        modules.setdefault(module, {})[part] = info
    return modules


def _place(name: str, tensors: Mapping[str, TensorInfo]) -> tuple[str, str]:
    module, dot, part = name.rpartition(".")
    if part in PARTS:
        return module + dot, part
    for suffix in BESIDE_STACKED:
        if name.endswith(suffix) and (whole := name.removesuffix(suffix)) in tensors:
            return whole, WEIGHT + suffix if suffix == _FP8_SCALES else suffix
    has_scales = any(name + suffix in tensors for suffix in BESIDE_STACKED)
    return name, WEIGHT if has_scales else ""


def unknown(what: str, parts: Mapping[str, Any]) -> PruneError:
    """Return the refusal of a matrix whose format is not known."""
    return PruneError(
        f"{what} is stored as {', '.join(sorted(parts))}: that format cannot be decoded",
        hint=f"{KNOWN}; score or search the original checkpoint, then apply the map to this one: "
        "vmprune build --model THIS --map MAP --allow-other-base",
    )
