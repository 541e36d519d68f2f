"""Quantised matrices turned back into numbers, in float32, as many rows at a time as are asked for.

A number is (code - zero point) * scale. What differs between formats is how codes are packed and
which numbers share a scale; forms.py has their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from offline.engines.quantised.forms import form_of, unknown
from offline.engines.quantised.stored_matrix import Parts, StoredMatrix, fitting
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.rewrite import TensorInfo
from vllm_moe_prune.roles import WEIGHT

# The numbers of FP4 (OCP Microscaling 1.0, E2M1), by code, and the bias of a shared exponent.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FP4 = torch.tensor([*_E2M1, *(-value for value in _E2M1)])
_MX_BIAS = 127
_WORD = 32
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word the codes of 8 neighbours are
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int8: "I8", torch.uint8: "U8",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.float8_e8m0fnu: "F8_E8M0",
}  # fmt: skip


def matrix_of(parts: Parts, config: Mapping[str, Any], what: str) -> Tensor | StoredMatrix:
    """Return the matrix that parts are, as it is stored or to be decoded.

    :param config: `quantization_config`, which says what parts do not: the sizes of FP8's blocks,
        and of GPTQ whether zero points are one too small
    :param what: its name, for the refusal
    :raises PruneError: if the format is not known, or the parts do not fit together
    """
    with fitting(what):
        found = _matrix_of(parts, config, what)
    return replace(found, what=what) if isinstance(found, StoredMatrix) else found


def _matrix_of(parts: Parts, config: Mapping[str, Any], what: str) -> Tensor | StoredMatrix:
    headers = {
        name: TensorInfo(name, _DTYPES.get(part.dtype, ""), tuple(part.shape))
        for name, part in parts.items()
    }
    form = form_of(headers)
    if form is None:
        raise unknown(what, parts)
    match form.codes:
        case "plain":
            return parts[WEIGHT]
        case "codes":
            return _codes(parts, config)
        case "packed":
            return _packed(parts, config)
        case "fp4":
            return _fp4(parts)
        case "gptq":
            return _gptq(parts, config)
        case "awq":
            return _awq(parts)


def matrices_of(parts: Parts, config: Mapping[str, Any], what: str) -> list[Tensor | StoredMatrix]:
    """Return the matrix of each expert of parts that are of all experts, [E, ...] each.

    Parts that are not, such as one shape, are every expert's.
    """
    count = max((len(part) for part in parts.values() if part.ndim == 3), default=0)
    return [
        matrix_of(
            {n: p[one] if p.ndim and len(p) == count else p for n, p in parts.items()}, config, what
        )
        for one in range(count)
    ]


@dataclass(frozen=True, slots=True)
class _Scales:
    """What numbers are multiplied with, [R, G]: that of row n and column k is in row n // height
    and column columns[k]; and the zero points of each row, [N, G], if there are any."""

    table: Tensor
    height: int
    columns: Tensor
    zeros: Tensor | None = None

    def apply(self, codes: Tensor, rows: slice, count: int) -> Tensor:
        """Return the numbers of codes [n, K], which are the given rows of ``count``."""
        places = torch.arange(count)[rows] // self.height
        if self.zeros is not None:
            codes = codes - self.zeros[rows][:, self.columns]
        return codes * self.table[places][:, self.columns]


def _scales(
    scale: Tensor, shape: torch.Size, config: Mapping[str, Any], parts: Parts
) -> tuple[Tensor, int, Tensor]:
    """Return the table, height and columns of scales that lie as compressed-tensors, or FP8
    checkpoints with blocks, have them."""
    table, (rows, columns) = _numbers(scale), shape
    if table.numel() == 1 or (table.ndim == 1 and len(table) == rows):
        height, width = (rows if table.numel() == 1 else 1), columns
        table = table.reshape(-1, 1)
    elif table.ndim == 2 and len(table) == rows:  # groups along a row
        height, width = 1, -(-columns // table.shape[1])
    else:
        height, width = _block(shape, table.shape, config)
    order = parts.get("weight_g_idx")
    if order is None or bool((order < 0).any()):
        order = torch.arange(columns) // width
    return table, height, order.long()


def _numbers(scale: Tensor) -> Tensor:
    """Return scales in float32; bytes are exponents."""
    if scale.dtype is torch.uint8:
        return torch.ldexp(torch.ones(scale.shape), scale.int() - _MX_BIAS)
    return scale.float()


def _block(shape: torch.Size, table: torch.Size, config: Mapping[str, Any]) -> tuple[int, int]:
    """Return the rows and columns that share a scale, as the config has it."""
    groups = (config.get("config_groups") or {}).values()
    listed = [config.get("weight_block_size")]
    listed += [(group.get("weights") or {}).get("block_structure") for group in groups]
    for found in listed:
        if found and all(-(-n // b) == t for n, b, t in zip(shape, found, table, strict=True)):
            return int(found[0]), int(found[1])
    raise PruneError(
        f"scales {tuple(table)} of a matrix {tuple(shape)} are of no block that config.json names",
        hint="its quantization_config says weight_block_size, or block_structure",
    )


def _codes(parts: Parts, config: Mapping[str, Any]) -> StoredMatrix:
    shape = parts[WEIGHT].shape
    scale = parts["weight_scale" if "weight_scale" in parts else "weight_scale_inv"]
    zeros = parts.get("weight_zero_point")
    if zeros is not None:
        zeros = zeros.float()
        zeros = zeros.view(1, 1) if zeros.numel() == 1 else zeros.view(len(zeros), -1)
        zeros = zeros.expand(shape[0], -1)
    scales = _Scales(*_scales(scale, shape, config, parts), zeros)

    def decode(given: Parts, rows: slice) -> Tensor:
        return scales.apply(given[WEIGHT][rows].float(), rows, shape[0])

    return StoredMatrix(parts, decode, shape)


def _packed(parts: Parts, config: Mapping[str, Any]) -> StoredMatrix:
    shape = torch.Size(parts["weight_shape"].tolist())
    count, columns = shape
    words = parts["weight_packed"].shape
    if count != words[0] or not 0 < columns <= _WORD * words[1]:
        raise ValueError(f"weight_shape is {[count, columns]}, weight_packed {list(words)}")
    bits = _WORD // -(-columns // words[1])
    zeros = parts.get("weight_zero_point")  # packed along the rows
    middle = 1 << (bits - 1) if zeros is None else 0
    if zeros is not None:
        zeros = _unpacked(zeros.T, bits)[:, :count].T.float()
    scales = _Scales(*_scales(parts["weight_scale"], shape, config, parts), zeros)

    def decode(given: Parts, rows: slice) -> Tensor:
        codes = _unpacked(given["weight_packed"][rows], bits)[:, :columns]
        return scales.apply(codes.float() - middle, rows, count)

    return StoredMatrix(parts, decode, shape)


def _unpacked(words: Tensor, bits: int, places: tuple[int, ...] | None = None) -> Tensor:
    """Return the codes [N, K] of int32 [N, words], which lie in them from the lowest bits up.

    :param places: of the codes of a word, if they do not lie in their order
    """
    order = range(_WORD // bits) if places is None else places
    shifts = torch.tensor([bits * place for place in order], dtype=torch.int32)
    return ((words[:, :, None] >> shifts) & ((1 << bits) - 1)).flatten(1)


def _fp4(parts: Parts) -> StoredMatrix:
    """NVFP4, whose scales have one in common, which ModelOpt multiplies with; and MXFP4."""
    name = WEIGHT if WEIGHT in parts else "weight_packed"
    count, columns = len(parts[name]), 2 * parts[name].shape[1]
    table = _numbers(parts["weight_scale"])
    if "weight_scale_2" in parts:
        table = table * parts["weight_scale_2"].float()
    elif "weight_global_scale" in parts:
        table = table / parts["weight_global_scale"].float()
    scales = _Scales(table, 1, torch.arange(columns) // (columns // table.shape[1]))

    def decode(given: Parts, rows: slice) -> Tensor:
        return scales.apply(fp4_numbers(given[name][rows]).flatten(1), rows, count)

    return StoredMatrix(parts, decode, torch.Size((count, columns)))


def fp4_numbers(codes: Tensor) -> Tensor:
    """Return the numbers [..., 2] of bytes [...] of two FP4 codes each, the lower half first."""
    return _FP4[torch.stack((codes & 15, codes >> 4), dim=-1).long()]


def _gptq(parts: Parts, config: Mapping[str, Any]) -> StoredMatrix:
    bits = _WORD * parts["qzeros"].shape[1] // parts["scales"].shape[1]
    columns, count = len(parts["qweight"]) * _WORD // bits, parts["scales"].shape[1]
    zeros = _unpacked(parts["qzeros"], bits)
    if config.get("checkpoint_format") != "gptq_v2":  # the first version stores them less one
        zeros = (zeros + 1) & ((1 << bits) - 1)
    order = parts.get("g_idx")
    if order is None:
        order = torch.arange(columns) // -(-columns // len(parts["scales"]))
    scales = _Scales(parts["scales"].float().T, 1, order.long(), zeros.float().T)

    def decode(given: Parts, rows: slice) -> Tensor:
        codes = _unpacked(given["qweight"][:, rows].T, bits)
        return scales.apply(codes.float(), rows, count)

    return StoredMatrix(parts, decode, torch.Size((count, columns)))


def _awq(parts: Parts) -> StoredMatrix:
    bits, word = 4, len(_AWQ_PLACES)
    columns, count = len(parts["qweight"]), parts["scales"].shape[1]
    zeros = _unpacked(parts["qzeros"], bits, _AWQ_PLACES)
    order = torch.arange(columns) // -(-columns // len(parts["scales"]))
    scales = _Scales(parts["scales"].float().T, 1, order, zeros.float().T)

    def decode(given: Parts, rows: slice) -> Tensor:
        first, last, step = rows.indices(count)
        words = slice(first // word, -(-last // word))
        codes = _unpacked(given["qweight"][:, words], bits, _AWQ_PLACES)
        begin = first - words.start * word
        own = codes[:, begin : begin + last - first : step].T
        return scales.apply(own.float(), rows, count)

    return StoredMatrix(parts, decode, torch.Size((count, columns)))


def stacked(blocks: Tensor, scales: Tensor) -> list[StoredMatrix]:
    """Return the matrix [N, K] of each expert of a tensor in MXFP4, as gpt-oss has it.

    :param blocks: [E, N, G, 16], bytes of two codes each
    :param scales: [E, N, G], exponents
    """
    shape = torch.Size((blocks.shape[1], blocks.shape[2] * blocks.shape[3] * 2))
    return [
        StoredMatrix({"blocks": one, "scales": scale}, _mxfp4, shape)
        for one, scale in zip(blocks, scales, strict=True)
    ]


def _mxfp4(parts: Parts, rows: slice) -> Tensor:
    values = fp4_numbers(parts["blocks"][rows]).flatten(2)  # [n, G, 32]
    return torch.ldexp(values, parts["scales"][rows].int()[..., None] - _MX_BIAS).flatten(1)
