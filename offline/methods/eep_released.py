"""Reads the coefficient files that the EEP authors released: a dict of matrices in a .pth.

Keys are ``layers.[0-7]``, ``layers.12`` and ``others`` for W_EM, ``transfer.[0-7]``,
``transfer.12`` and ``others_transfer`` for W_RM; ``others`` are the layers that no other key names.
A row may have another main expert in each, and rows may share one (crossover).
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offline.maps.genome import Coefficients, Genome
from offline.maps.map_space import Space
from offline.maps.moe_shape import MoeShape
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.fingerprint import BaseFingerprint
from vllm_moe_prune.layouts import LAYOUTS
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap

_KEY = re.compile(r"(layers|transfer)\.(?:(\d+)|\[(\d+)-(\d+)\])")
_REST = {"others": "layers", "others_transfer": "transfer"}
_MIXTRAL_LAYERS, _MIXTRAL_EXPERTS, _MIXTRAL_TOP_K = 32, 8, 2

LayerNumbers = tuple[int, ...]
_HINT = "only tensors are read; nothing that a file may contain is run"


@dataclass(frozen=True, slots=True)
class ReleasedCoefficients:
    """What a file holds: per group its layer numbers and its matrices; and which file it was."""

    groups: tuple[LayerNumbers, ...]
    genome: Genome
    file: str
    sha256: str

    @property
    def num_kept(self) -> int:
        """E' of every layer."""
        return self.genome.rows[0]

    @property
    def num_experts(self) -> int:
        """E of the base."""
        return self.genome.groups[0].num_experts

    def by_layer(self) -> dict[int, Coefficients]:
        """Return the matrices of every layer."""
        pairs = zip(self.groups, self.genome.groups, strict=True)
        return {layer: coefficients for group, coefficients in pairs for layer in group}


def read_coefficients(path: Path, num_layers: int = _MIXTRAL_LAYERS) -> ReleasedCoefficients:
    """Read a released file without running what it may contain (``weights_only``).

    :param num_layers: layers of the model, numbered from 0
    :raises PruneError: if it is no such file, its layers are not those of the model, or a matrix
        is not of the common shape [E', E] or has a value that is not finite
    """
    tables = _by_kind(path, _load(path), num_layers)
    groups = tuple(sorted(tables["layers"]))
    if groups != tuple(sorted(tables["transfer"])):
        raise PruneError(f"{path}: its expert and its router matrices are not of the same layers")
    shape = tables["layers"][groups[0]].shape
    for group in groups:
        for kind in ("layers", "transfer"):
            _check_matrix(f"{path}: {kind} of {_range(group)}", tables[kind][group], shape)
    pairs = [Coefficients(tables["layers"][g], tables["transfer"][g]) for g in groups]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ReleasedCoefficients(groups, Genome(tuple(pairs)), path.name, f"sha256:{digest}")


def coefficients_map(
    released: ReleasedCoefficients, space: Space, origin: Mapping[str, str] | None = None
) -> RoutingMap:
    """Make the routing map of a file for a base.

    :param space: keeps as many experts as the file, see `space_for` and `mixtral_8x7b`
    :param origin: what the map's provenance is to say of the base, as `hub.origin`
    :raises PruneError: if the base has other layers or another number of experts
    """
    numbers = sorted(layer for group in released.groups for layer in group)
    if numbers != list(space.layers):
        raise PruneError(
            f"{released.file} is for {len(numbers)} layers with experts, "
            f"the model has {len(space.layers)}"
        )
    for layer, count in space.num_experts.items():
        if count != released.num_experts:
            raise PruneError(
                f"{released.file} is for {released.num_experts} experts, "
                f"layer {layer} of the model has {count}"
            )
    groups = tuple(space.group(layers) for layers in released.groups)
    provenance = Provenance.now(
        "eep-released",
        settings={
            "file": released.file,
            "sha256": released.sha256,
            "groups": len(released.groups),
            "source": "imagination-research/EEP (arXiv 2407.00945)",
            **(origin or {}),
        },
    )
    return space.genome_map(released.genome, groups, provenance)


def space_for(released: ReleasedCoefficients, base: Checkpoint) -> Space:
    """Describe a base checkpoint that is to keep what the file keeps."""
    counts = set(base.expert_counts().values())
    if counts != {released.num_experts}:
        raise PruneError(
            f"{released.file} is for {released.num_experts} experts per layer, "
            f"the model has {'/'.join(map(str, sorted(counts)))}"
        )
    return Space.of(MoeShape.of(base), keep=released.num_kept)


def mixtral_8x7b(keep: int) -> Space:
    """Describe Mixtral-8x7B without its weights: a map for it needs ``--allow-other-base``."""
    layout = LAYOUTS["mixtral"]
    layers = range(_MIXTRAL_LAYERS)
    shape = MoeShape(
        model_type=layout.model_type,
        base=BaseFingerprint(config="", index="", routers="", name="Mixtral-8x7B"),
        num_experts=dict.fromkeys(layers, _MIXTRAL_EXPERTS),
        top_k=dict.fromkeys(layers, _MIXTRAL_TOP_K),
        slices=layout.slices,
        mappable=layout.mappable,
    )
    return Space.of(shape, keep)


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise PruneError(f"no coefficient file at {path}")
    with path.open("rb") as stream:
        if not stream.read(2).startswith((b"PK", b"\x80")):  # told without torch
            raise PruneError(f"{path} is no coefficient file: torch saved no such file", hint=_HINT)
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on the pickle protocol of foreign files
            found = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # whatever a foreign file makes the reader raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise PruneError(
            f"{path} is no coefficient file: {reason[:200]}",
            hint=_HINT,
        ) from error
    if not isinstance(found, dict) or not found:
        raise PruneError(f"{path} is no coefficient file: it holds no table of matrices")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise PruneError(f"{path} is no coefficient file: entry {key!r} is not a matrix")
        if value.layout != torch.strided or not value.is_floating_point():
            raise PruneError(f"{path}: {key} is not a dense matrix of floating-point numbers")
    return {key: value.float().numpy() for key, value in found.items()}


def _by_kind(
    path: Path, table: Mapping[str, Any], num_layers: int
) -> dict[str, dict[LayerNumbers, Any]]:
    """Sort the matrices into W_EM (``layers``) and W_RM (``transfer``), by the layers of each."""
    found: dict[str, dict[LayerNumbers, Any]] = {"layers": {}, "transfer": {}}
    for key, matrix in table.items():
        if key in _REST:
            continue
        kind, layers = _parse(path, key, num_layers)
        if taken := {n for group in found[kind] for n in group} & set(layers):
            raise PruneError(f"{path}: layer {min(taken)} is in two groups ({key})")
        found[kind][layers] = matrix
    for key, kind in _REST.items():
        named = {n for group in found[kind] for n in group}
        rest = tuple(n for n in range(num_layers) if n not in named)
        if key in table and rest:
            found[kind][rest] = table[key]
        elif key in table or rest:
            raise PruneError(
                f"{path} is not for {num_layers} layers: "
                + (f"no matrix for layer {rest[0]}" if rest else f"none is left for {key}")
            )
        _check_rest(path, found[kind], rest, num_layers)
    return found


def _check_rest(
    path: Path, groups: Mapping[LayerNumbers, Any], rest: LayerNumbers, num_layers: int
) -> None:
    """`others` takes a remainder at most: more means that the file is for a shorter model."""
    largest = max((len(group) for group in groups if group != rest), default=len(rest))
    if len(rest) >= 2 * largest and len(groups) > 1:
        raise PruneError(
            f"{path} is not for {num_layers} layers: {len(rest)} of them would be `others`"
        )


def _parse(path: Path, key: str, num_layers: int) -> tuple[str, LayerNumbers]:
    match = _KEY.fullmatch(key)
    if match is None:
        raise PruneError(f"{path} is no coefficient file: unknown entry {key!r}")
    first = int(match[2] or match[3])
    last = int(match[2] or match[4])
    if not first <= last < num_layers:
        raise PruneError(f"{path}: {key} is not within the model's {num_layers} layers")
    return match[1], tuple(range(first, last + 1))


def _check_matrix(where: str, matrix: Any, shape: tuple[int, ...]) -> None:
    import numpy as np

    if matrix.ndim != 2 or not 1 <= matrix.shape[0] <= matrix.shape[1]:
        raise PruneError(f"{where}: shape {list(matrix.shape)} is not [E', E] with E' <= E")
    if matrix.shape != shape:
        raise PruneError(f"{where}: shape {list(matrix.shape)}, others have {list(shape)}")
    if not np.isfinite(matrix).all():
        raise PruneError(f"{where} has a value that is not finite")


def _range(layers: LayerNumbers) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]}-{layers[-1]}"
