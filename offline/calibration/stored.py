"""The experts of a checkpoint as they are stored, quantised or not, for what their weights show.

A quantised matrix is decoded a few rows at a time, in float32; so what is in memory is a layer as
it is stored. Matrices have their own orientation, which none of the weight criteria depends on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from offline.calibration.statistics import WeightStatistics
from offline.calibration.weights import Expert, Matrix, weight_statistics
from offline.engines.quantised.decode import matrices_of, matrix_of, stacked
from offline.engines.quantised.forms import ASIDE, modules_of
from offline.engines.quantised.stored_matrix import Decode, Parts, StoredMatrix
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.quantisation import settings_of
from vllm_moe_prune.roles import BESIDE_STACKED, PARTS, STACKED_PARTS, WEIGHT


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
        yield from _stacked(checkpoint, layer, count)
        return
    settings = settings_of(checkpoint.config)
    for expert in range(count):
        stems = (layout.expert_name(layer, expert, one, "") for one in layout.projections)
        yield tuple(
            matrix_of(_parts(checkpoint, stem), settings, stem.rstrip(".")) for stem in stems
        )


def _parts(checkpoint: Checkpoint, stem: str) -> dict[str, Tensor]:
    """Return part -> tensor of all that a matrix consists of."""
    found = (part for part in PARTS if stem + part in checkpoint.stored)
    return {part: checkpoint.tensor(stem + part) for part in found}


def _stacked(checkpoint: Checkpoint, layer: int, count: int) -> Iterator[Expert]:
    """Yield the matrices of experts that lie in one tensor for gate and up, or in one each."""
    layout = checkpoint.layout
    names = [name for name in layout.stacked_names(layer) if not name.endswith("_bias")]
    stacks = [_stack(checkpoint, name, count) for name in names]
    if len(names) != 2:
        yield from zip(*stacks, strict=True)
        return
    hidden = checkpoint.hidden_size
    for one, other in zip(*stacks, strict=True):
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            # A down matrix of [I, D], or a wide one of [D, 2I], is of a family that transposes.
            if one.shape[1] != hidden or (one.shape[0] == hidden and other.shape[0] != hidden):
                one = one.T
            if one.numel() == other.numel():  # nothing gates
                yield one, other
                continue
            gate, up = (one[::2], one[1::2]) if layout.interleaved else one.chunk(2)
            yield gate, up, other
        else:
            yield (*_halves(one, layout.interleaved), other)


def _stack(checkpoint: Checkpoint, name: str, count: int) -> Sequence[Matrix]:
    """Return the matrix of each expert, [N, K], of a stacked tensor."""
    stem = name.removesuffix(WEIGHT)
    parts = _parts(checkpoint, stem) if stem != name else {}
    if parts:
        return matrices_of(parts, settings_of(checkpoint.config), name)
    if name in checkpoint.stored:
        if parts := _scaled(checkpoint, name):
            return matrices_of(parts, settings_of(checkpoint.config), name)
        tensor = checkpoint.tensor(name)
        return list(tensor if tensor.ndim > 2 else tensor.view(count, -1, tensor.shape[1]))
    return stacked(*(checkpoint.tensor(name + part) for part in STACKED_PARTS))


def _scaled(checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
    """Return part -> tensor of a stacked tensor with scales beside it; nothing if it has none."""
    names = (name + suffix for suffix in ("", *BESIDE_STACKED))
    stored = {one: checkpoint.stored[one].info for one in names if one in checkpoint.stored}
    found = modules_of(stored)
    parts = {part: info.name for part, info in found[name].items() if part not in ASIDE}
    return {part: checkpoint.tensor(one) for part, one in parts.items()} if "" not in parts else {}


def _halves(matrix: Matrix, interleaved: bool) -> tuple[Matrix, Matrix]:
    """Return gate and up of a stored matrix whose rows are both."""
    assert isinstance(matrix, StoredMatrix)
    count, columns = matrix.shape
    middle = count // 2
    picks = (slice(0, None, 2), slice(1, None, 2)), (slice(0, middle), slice(middle, None))
    gate, up = (
        StoredMatrix(matrix.parts, _of(matrix, range(count)[pick]), torch.Size((middle, columns)))
        for pick in picks[0 if interleaved else 1]
    )
    return gate, up


def _of(matrix: StoredMatrix, places: range) -> Decode:
    """Return how some of a matrix's rows are decoded."""

    def decode(parts: Parts, rows: slice) -> Tensor:
        own = places[rows]
        return matrix.decode(parts, slice(own.start, own.stop, own.step))

    return decode
