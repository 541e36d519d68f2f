"""The matrices that a routing map's layers name: reading and checking them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap

Matrix = NDArray[np.float32]


def read_matrices(file: Path, layers: tuple[LayerMap, ...]) -> dict[str, Matrix]:
    """Read the matrices that layers name, each [E', E]; none where none is named.

    :raises PruneError: if the file is missing or damaged
    """
    if not any(name for layer in layers for name in named(layer)):
        return {}
    try:
        return dict(load_file(file))
    except FileNotFoundError:
        raise PruneError(f"routing map names matrices but {file} is missing") from None
    except (SafetensorError, TypeError) as error:  # TypeError: a dtype that numpy has not
        raise PruneError(f"{file} is damaged: {error}") from None


def named(layer: LayerMap) -> list[str]:
    """Return the names of the matrices that a layer needs."""
    return [s.matrix for s in (layer.experts, layer.router_rows) if s and s.matrix]


def check_matrices(layers: tuple[LayerMap, ...], matrices: Mapping[str, Matrix]) -> None:
    """Refuse matrices that are not as the layers say.

    :raises PruneError: naming the layer and the matrix
    """
    for layer in layers:
        for name in named(layer):
            matrix = matrices.get(name)
            where = f"layer {layer.layer}: matrix {name}"
            if matrix is None:
                raise PruneError(f"{where} is missing")
            if matrix.shape != (layer.num_kept, layer.num_experts):
                raise PruneError(
                    f"{where} has shape {list(matrix.shape)}, "
                    f"not [{layer.num_kept}, {layer.num_experts}]"
                )
            if matrix.dtype != np.float32:
                raise PruneError(f"{where} is {matrix.dtype}, not float32")
            if not np.isfinite(matrix).all():
                raise PruneError(f"{where} has a value that is not finite")
    unused = matrices.keys() - {name for layer in layers for name in named(layer)}
    if unused:
        raise PruneError(f"matrix {min(unused)} is not named by any layer")
