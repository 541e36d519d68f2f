"""The matrices that a routing map's layers name: reading and checking them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap
from vllm_moe_prune.reading import MissingFileError
from vllm_moe_prune.tensor_files import read_arrays

Matrix = NDArray[np.float32]


def read_matrices(file: Path, layers: tuple[LayerMap, ...]) -> dict[str, Matrix]:
    """Read the matrices that layers name; none where none is named.

    :raises PruneError: if the file is missing or damaged
    """
    if not any(name for layer in layers for name in named(layer)):
        return {}
    try:
        return read_arrays(file)
    except MissingFileError:
        raise PruneError(f"routing map names matrices but {file} is missing") from None


def named(layer: LayerMap) -> list[str]:
    """Return the names of the matrices that a layer needs."""
    return [name for name, _ in _shapes(layer)]


def _shapes(layer: LayerMap) -> list[tuple[str, tuple[int, int | None]]]:
    """Return name and shape of each matrix that a layer needs; of vectors any length will do."""
    found: list[tuple[str, tuple[int, int | None]]] = []
    rows = ((layer.experts, layer.num_kept), (layer.router_rows, layer.num_choices))
    for selection, count in rows:
        if selection is not None and selection.matrix is not None:
            found.append((selection.matrix, (count, layer.num_experts)))
    if layer.substituted is not None:
        found.append((layer.substituted.vectors, (len(layer.constant_ids), None)))
    return found


def check_matrices(layers: tuple[LayerMap, ...], matrices: Mapping[str, Matrix]) -> None:
    """Refuse matrices that are not as the layers say.

    :raises PruneError: naming the layer and the matrix
    """
    for layer in layers:
        for name, (rows, columns) in _shapes(layer):
            matrix = matrices.get(name)
            where = f"layer {layer.layer}: matrix {name}"
            if matrix is None:
                raise PruneError(f"{where} is missing")
            wide = matrix.shape[-1] if columns is None and matrix.ndim == 2 else columns
            if matrix.shape != (rows, wide) or not wide:
                wanted = "D" if columns is None else columns
                raise PruneError(f"{where} has shape {list(matrix.shape)}, not [{rows}, {wanted}]")
            if matrix.dtype != np.float32:
                raise PruneError(f"{where} is {matrix.dtype}, not float32")
            if not np.isfinite(matrix).all():
                raise PruneError(f"{where} has a value that is not finite")
    unused = matrices.keys() - {name for layer in layers for name in named(layer)}
    if unused:
        raise PruneError(f"matrix {min(unused)} is not named by any layer")
