"""A checkpoint on disk, opened by its headers; tensors are read one operation at a time.

The safetensors library checks each header when the file is opened (no holes, no overlaps, length
as declared), so an opened checkpoint is whole. Byte ranges come from the header: most of a pruned
checkpoint is a copy of ranges, which needs neither memory nor tensors (docs/decisions/0002). Of a
snapshot in the hub's cache whose weights are not downloaded yet, headers come over the network.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_moe_prune.completeness import Missing, matrices_of, missing_tensors
from vllm_moe_prune.config_keys import count_at, hidden_size_of
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.fingerprint import VERIFY, BaseFingerprint
from vllm_moe_prune.headers import MissingShardError, StoredTensor, read_headers
from vllm_moe_prune.hub import snapshot_of
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.layouts import layout_of
from vllm_moe_prune.reading import MissingFileError, read_object
from vllm_moe_prune.rewrite import (
    Combine,
    Copy,
    Drop,
    Mix,
    Operation,
    Slice,
    TensorInfo,
    expert_counts,
)
from vllm_moe_prune.tensor_files import open_tensors, readable
from vllm_moe_prune.weights_digest import sampled, whole

if TYPE_CHECKING:
    import torch

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
# A compact checkpoint keeps its weights here, where no reader but ours looks: a reader that
# ignores the routing map finds no weights instead of computing garbage (docs/decisions/0003).
COMPACT_FOLDER = "pruned_moe"

# Entries of config.json that may differ between copies of one and the same model.
_VOLATILE_KEYS = frozenset({"_name_or_path", "transformers_version", "torch_dtype", "dtype"})
# Those that tensors can be combined, or only cast, into.
_TORCH_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(slots=True)
class Checkpoint:
    """An opened checkpoint: config, layout, and where every tensor is."""

    folder: Path
    config: dict[str, Any]
    layout: MoeLayout
    stored: dict[str, StoredTensor]
    mapped: bool = False  # tensors are views of their files: where parts of them are wanted
    _open: dict[Path, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, folder: Path, *, mapped: bool = False) -> Checkpoint:
        """Open a folder with config.json and safetensors files.

        :param mapped: map the files into memory instead of reading tensors from them
        :raises PruneError: if a file is missing, truncated or damaged, the index names an absent
            tensor, the model family is not supported, or a layer has experts twice
        """
        config = read_config(folder)
        layout, stored = layout_of(config), stored_tensors(folder)
        return cls(folder, config, layout.settled(stored), stored, mapped)

    @property
    def text_config(self) -> Mapping[str, Any]:
        """What config.json says of the language model."""
        return self.layout.text_config(self.config)

    @property
    def hidden_size(self) -> int:
        """Return D.

        :raises PruneError: if config.json says nothing of it
        """
        return hidden_size_of(self.text_config)

    @property
    def vocab_size(self) -> int:
        """Return V; raises as `hidden_size`."""
        return count_at(self.text_config, "vocab_size")

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Return name -> info, in the order of files and of bytes within a file."""
        return {name: stored.info for name, stored in self.stored.items()}

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(stored.info.num_bytes for stored in self.stored.values())

    @property
    def name(self) -> str:
        """What people call this model: its name on the hub where it is a snapshot from there."""
        snapshot = snapshot_of(self.folder)
        return snapshot.repo_id if snapshot else self.folder.resolve().name

    def expert_counts(self) -> dict[int, int]:
        """Return decoder layer -> number of experts."""
        return expert_counts(self.tensors, self.layout)

    def missing_tensors(self) -> Missing:
        """Return what single experts lack that others of their layer have (completeness.py)."""
        matrices = matrices_of(self.tensors, self.layout)
        return missing_tensors(matrices, self.layout, self.expert_counts())

    def expert_bytes(self) -> int:
        """Bytes of all experts' projections."""
        return sum(
            stored.info.num_bytes
            for name, stored in self.stored.items()
            if (role := self.layout.classify(name)) is not None and role.kind != "router"
        )

    def fingerprint(self) -> BaseFingerprint:
        """Identify this checkpoint by its content: two routers and samples of all other tensors.

        With ``VMPRUNE_VERIFY`` all bytes are read as well.
        """
        shaping = {k: v for k, v in self.config.items() if k not in _VOLATILE_KEYS}
        index = sorted((i.name, i.dtype, i.shape) for i in self.tensors.values())
        routers = hashlib.sha256()
        experts = self.expert_counts()
        layers = list(experts)
        for layer in (layers[0], layers[-1]):
            routers.update(self.raw(self.layout.router_name(layer)))
        return BaseFingerprint(
            config=_sha256_json(shaping),
            index=_sha256_json(index),
            routers="sha256:" + routers.hexdigest(),
            weights=sampled(self.stored, self._experts_in(experts)),
            whole=whole(self.stored) if os.environ.get(VERIFY) else None,
            name=self.name,
        )

    def _experts_in(self, counts: Mapping[int, int]) -> Callable[[str], int]:
        """Return what says how many experts a tensor holds, 1 of any other."""

        def found(name: str) -> int:
            role = self.layout.classify(name)
            return counts[role.layer] if role is not None and role.kind == "stacked" else 1

        return found

    def raw(self, name: str) -> bytes:
        """Return the bytes of a tensor.

        :raises PruneError: if there is none of this name
        """
        if name not in self.stored:
            raise PruneError(f"the checkpoint has no tensor {name}")
        return self.stored[name].read()

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU.

        :raises PruneError: if its file became shorter or is damaged
        """
        file = self.stored[name].file
        if file not in self._open:
            self._open[file] = open_tensors(file, mapped=self.mapped)
        with readable(file):
            result: torch.Tensor = self._open[file].get_tensor(name)
        return result

    def perform(self, operation: Operation) -> torch.Tensor | None:
        """Return the tensor that an operation makes, or None if it drops one."""
        match operation:
            case Copy(source=source):
                return self.tensor(source)
            case Slice(source=source, rows=rows, count=count, target=target):
                return self.tensor(source).reshape(count, -1)[list(rows)].reshape(target.shape)
            case Combine():
                return self._combine(operation)
            case Mix():
                return self._mix(operation)
            case Drop():
                return None

    def _combine(self, operation: Combine) -> torch.Tensor:
        import torch

        sources = zip(map(self.tensor, operation.sources), operation.coefficients, strict=True)
        total = _weighted_sum(sources, operation.target.shape)
        return total.to(getattr(torch, _TORCH_DTYPES[operation.target.dtype]))

    def _mix(self, operation: Mix) -> torch.Tensor:
        import torch

        source, matrix = self.tensor(operation.source), operation.matrix
        source = source.reshape(len(matrix[0]), -1)  # experts may lie one below the other
        mixed = torch.empty((len(matrix), source.shape[1]), dtype=source.dtype)
        for new, coefficients in enumerate(matrix):
            used = ((source[old], c) for old, c in enumerate(coefficients) if c)
            mixed[new] = _weighted_sum(used, tuple(source.shape[1:])).to(source.dtype)
        return mixed.reshape(operation.target.shape)


def _weighted_sum(
    parts: Iterable[tuple[torch.Tensor, float]], shape: tuple[int, ...]
) -> torch.Tensor:
    """Return the sum of coefficient * tensor in float32, in which one tensor is at a time."""
    import torch

    total = torch.zeros(shape, dtype=torch.float32)
    for tensor, coefficient in parts:
        total.add_(tensor.float(), alpha=coefficient)
    return total


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json.

    :raises PruneError: if the folder or the file is absent or not JSON
    """
    if not folder.is_dir():
        raise PruneError(
            f"no such model folder: {folder}",
            hint="give the path of a checkpoint, or the name of one on the hub: Org/Name",
        )
    return _read_object(folder / "config.json")


def _read_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    :raises PruneError: if it is absent or something else
    """
    try:
        return read_object(file)
    except MissingFileError as error:
        raise PruneError(error.message, hint="is this a model checkpoint?") from None


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return name -> where the tensor is, of a folder with safetensors files.

    :raises PruneError: if a file is missing, truncated or damaged, or the index is wrong
    """
    weights = folder / COMPACT_FOLDER
    return _stored(weights if weights.is_dir() else folder)


def _stored(folder: Path) -> dict[str, StoredTensor]:
    index_file = folder / INDEX_FILE
    if index_file.exists():
        weight_map = _read_object(index_file).get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(name, str) for name in weight_map.values()
        ):
            raise PruneError(f"{index_file} has no weight_map")
        files = [folder / name for name in sorted(set(weight_map.values()))]
        return _in_one_place(read_headers(files), weight_map, index_file)
    try:
        return {tensor.info.name: tensor for tensor in read_headers([folder / SINGLE_FILE])}
    except MissingShardError:
        raise PruneError(
            f"{folder} has no safetensors weights",
            hint=f"expected {SINGLE_FILE} or {INDEX_FILE}; pickled weights are not read",
        ) from None


def _in_one_place(
    tensors: Iterable[StoredTensor], weight_map: Mapping[str, str], index_file: Path
) -> dict[str, StoredTensor]:
    """Refuse an index that does not say of every tensor, and of it alone, where it is."""
    stored: dict[str, StoredTensor] = {}
    for tensor in tensors:
        name, file = tensor.info.name, tensor.file.name
        if (other := stored.get(name)) is not None:
            raise PruneError(f"tensor {name} is in two files: {other.file} and {file}")
        if name not in weight_map:
            raise PruneError(f"{tensor.file} has tensor {name}, which {index_file.name} lacks")
        stored[name] = tensor
    for name, file in weight_map.items():
        if name not in stored or stored[name].file.name != file:
            raise PruneError(f"{index_file} names tensor {name}, which is not in {file}")
    return stored


def _sha256_json(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
