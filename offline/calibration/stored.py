"""The experts of a checkpoint as they are stored, quantised or not, for what their weights show.

A quantised matrix is decoded a few rows at a time, in float32; so what is in memory is a layer as
it is stored. Matrices have their own orientation, which none of the weight criteria depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offline.calibration.statistics import WeightStatistics
from offline.calibration.weights import Expert, Matrix, weight_statistics
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.roles import STACKED_PARTS, WEIGHT

Parts = Mapping[str, Tensor]
Decode = Callable[[Parts, slice], Tensor]

_NOT_THE_WEIGHTS = {"input_scale", "input_global_scale", "bias"}  # of activations, and biases
_CODES = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
# The numbers of MXFP4 (OCP Microscaling 1.0, E2M1), by code; 32 of them share a power of two.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_MX_BIAS = 127
_KNOWN = "known: unquantised, FP8, INT8 and INT4 without zero points, MXFP4"


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A quantised matrix [N, K], decoded to float32 where rows are asked for."""

    parts: Parts
    decode: Decode
    shape: torch.Size

    @property
    def device(self) -> torch.device:
        """Where rows are."""
        return torch.device("cpu")

    def detach(self) -> StoredMatrix:
        """Return itself: there is nothing to learn."""
        return self

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Return rows [n, K] in float32."""
        return self.decode(self.parts, rows)


def stored_weights(checkpoint: Checkpoint, layer: int) -> WeightStatistics:
    """Return what the weights of a layer show, from the checkpoint's own tensors.

    :raises PruneError: if they are stored in a format that is not known here
    """
    gate = checkpoint.tensor(checkpoint.layout.router_name(layer))
    return weight_statistics(gate, experts_of(checkpoint, layer))


def check_readable(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose experts' weights cannot be decoded.

    :raises PruneError: naming the format by its parts
    """
    next(iter(experts_of(checkpoint, min(checkpoint.expert_counts()))))


def experts_of(checkpoint: Checkpoint, layer: int) -> Iterator[Expert]:
    """Yield the matrices of each expert of a layer: gate, up, down."""
    layout, count = checkpoint.layout, checkpoint.expert_counts()[layer]
    if layout.expert is None:
        yield from _stacked(checkpoint, layer)
        return
    block = _block_of(checkpoint.config)
    for expert in range(count):
        yield tuple(
            _matrix(_parts(checkpoint, layout.expert_name(layer, expert, one, "")), block, one)
            for one in layout.projections
        )


def _parts(checkpoint: Checkpoint, stem: str) -> dict[str, Tensor]:
    """Return part -> tensor of all that a matrix consists of."""
    names = (name for name in checkpoint.stored if name.startswith(stem))
    return {name.removeprefix(stem): checkpoint.tensor(name) for name in names}


def _block_of(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the rows and columns that share a scale, where config.json says it."""
    found = (config.get("quantization_config") or {}).get("weight_block_size")
    return (int(found[0]), int(found[1])) if found else None


def _matrix(parts: Parts, block: tuple[int, int] | None, what: str) -> Matrix:
    own = parts.keys() - _NOT_THE_WEIGHTS
    weight = parts.get(WEIGHT)
    if weight is not None and own == {WEIGHT} and weight.dtype not in _CODES:
        return weight
    if weight is not None and weight.dtype in _CODES and len(own) == 2:
        scale = parts[(own - {WEIGHT}).pop()]
        if {"weight_scale", "weight_scale_inv"} & own:
            decode = _scaled(scale, weight.shape, block)
            return StoredMatrix(parts, decode, weight.shape)
    if (
        own == {"weight_packed", "weight_scale", "weight_shape"}
        and parts["weight_packed"].dtype == torch.int32
    ):
        rows, columns = parts["weight_shape"].tolist()
        return StoredMatrix(parts, _unpacked(columns), torch.Size((rows, columns)))
    raise PruneError(
        f"the experts' {what} is stored as {', '.join(sorted(parts))}: the weight criteria of that "
        "format are not known",
        hint=f"{_KNOWN}; score the original checkpoint",
    )


def _scaled(scale: Tensor, shape: torch.Size, block: tuple[int, int] | None) -> Decode:
    """Return how codes that are multiplied with one scale each are decoded."""
    per_row = scale.numel() in (1, shape[0])
    height, width = (1, shape[1]) if per_row or block is None else block
    if not per_row and block is None:  # groups along a row
        width = shape[1] // scale.shape[1]
    table = (
        scale.float().reshape(1, 1) if scale.numel() == 1 else scale.float().view(len(scale), -1)
    )

    def decode(parts: Parts, rows: slice) -> Tensor:
        values = parts[WEIGHT][rows].float()
        places = torch.arange(shape[0])[rows] // height if len(table) > 1 else 0
        factors = table[places].view(-1, table.shape[1])
        return values * factors.repeat_interleave(width, dim=1)[:, : shape[1]]

    return decode


def _unpacked(columns: int) -> Decode:
    """Return how codes that lie several to an int32, the first lowest, are decoded."""

    def decode(parts: Parts, rows: slice) -> Tensor:
        packed, scale = parts["weight_packed"][rows], parts["weight_scale"][rows].float()
        bits = 32 // -(-columns // packed.shape[1])
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        codes = (packed[:, :, None] >> shifts) & ((1 << bits) - 1)
        values = codes.flatten(1)[:, :columns].float() - (1 << (bits - 1))
        return values * scale.repeat_interleave(columns // scale.shape[1], dim=1)

    return decode


def _stacked(checkpoint: Checkpoint, layer: int) -> Iterator[Expert]:
    """Yield the matrices of experts that lie in one tensor for gate and up, and one for down."""
    layout = checkpoint.layout
    names = [name for name in layout.stacked_names(layer) if not name.endswith("_bias")]
    assert len(names) == 2, names
    wide, down = (_stack(checkpoint, name) for name in names)
    hidden = int(checkpoint.text_config["hidden_size"])
    for one, other in zip(wide, down, strict=True):
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            # A down matrix of [I, D], or a wide one of [D, 2I], is of a family that transposes.
            if one.shape[1] != hidden or (one.shape[0] == hidden and other.shape[0] != hidden):
                one = one.T
            gate, up = (one[::2], one[1::2]) if layout.interleaved else one.chunk(2)
            yield gate, up, other
        else:
            yield (*_halves(one, layout.interleaved), other)


def _stack(checkpoint: Checkpoint, name: str) -> Sequence[Matrix]:
    """Return the matrix of each expert, [N, K], of a stacked tensor."""
    if name in checkpoint.stored:
        return list(checkpoint.tensor(name))
    blocks, scales = (checkpoint.tensor(name + part) for part in STACKED_PARTS)
    shape = torch.Size((blocks.shape[1], blocks.shape[2] * blocks.shape[3] * 2))
    return [
        StoredMatrix({"blocks": one, "scales": scale}, _mxfp4, shape)
        for one, scale in zip(blocks, scales, strict=True)
    ]


def _mxfp4(parts: Parts, rows: slice) -> Tensor:
    """Decode bytes [N, G, 16] of two codes each, the lower half first, with scales [N, G]."""
    codes = parts["blocks"][rows]
    table = torch.tensor([*_E2M1, *(-value for value in _E2M1)])
    values = table[torch.stack((codes & 15, codes >> 4), dim=-1).long()].flatten(2)  # [n, G, 32]
    return torch.ldexp(values, parts["scales"][rows].int()[..., None] - _MX_BIAS).flatten(1)


def _halves(matrix: Matrix, interleaved: bool) -> tuple[Matrix, Matrix]:
    """Return gate and up of a stored matrix whose rows are both."""
    assert isinstance(matrix, StoredMatrix)
    middle = matrix.shape[0] // 2
    picks = (
        (slice(0, None, 2), slice(1, None, 2))
        if interleaved
        else (
            slice(0, middle),
            slice(middle, None),
        )
    )
    shape = torch.Size((middle, matrix.shape[1]))
    gate, up = (
        StoredMatrix(
            {name: part[pick] for name, part in matrix.parts.items()}, matrix.decode, shape
        )
        for pick in picks
    )
    return gate, up
