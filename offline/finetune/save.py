"""Trained weights back into a checkpoint of the names, shapes and dtypes that it came from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers.core_model_loading import revert_weight_conversion

from offline.finetune.job import StoredDtype
from vllm_moe_prune.checkpoint import INDEX_FILE, Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import let_others_read, write_atomic
from vllm_moe_prune.rewrite import TensorInfo
from vllm_moe_prune.writer import DEFAULT_SHARD_BYTES

_LAYER = re.compile(r"\.layers\.(\d+)\.")
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_STORED = {"float32": "F32", "bfloat16": "BF16"}
Tensors = dict[str, torch.Tensor]


def check_names(model: Any, base: Checkpoint) -> None:
    """Refuse a checkpoint whose language model transformers would not give back as it is.

    :raises PruneError: naming the first tensor that differs
    """
    state = model.state_dict()
    empty = {name: weight.to("meta") for name, weight in state.items()}
    layout = base.layout
    reverted = revert_weight_conversion(model, empty)
    owns = {layout.whole_name(name): name for name in reverted}
    found = {name: tuple(reverted[own].shape) for name, own in owns.items()}
    for name, info in base.tensors.items():
        if layout.own_name(name) is not None and found.get(name) != info.shape:
            raise PruneError(
                f"{base.folder}: transformers has {found.get(name, 'nothing')} for the tensor "
                f"{name} of shape {list(info.shape)}",
                hint="only checkpoints that transformers loads completely can be trained",
            )
        if info.dtype not in _DTYPES:
            raise PruneError(
                f"{base.folder}: tensor {name} is stored as {info.dtype}",
                hint="quantised weights cannot be trained; take the original checkpoint",
            )
    names = {name for name in state if layout.whole_name(name) in base.tensors}
    known = {state[name].data_ptr() for name in names}
    for name in found.keys() - base.tensors.keys():
        own = owns[name]
        if own not in state or state[own].data_ptr() not in known:  # not a tied one
            raise PruneError(f"{base.folder} has no tensor {name}, which the model needs")


def save_weights(
    model: Any,
    state: Tensors,
    base: Checkpoint,
    folder: Path,
    dtype: StoredDtype,
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write the tensors that ``base`` has, from a model's state, in shards with an index.

    What ``base`` has beside the language model is taken from there. Layer by layer, so that no
    second copy of all weights is in memory.

    :param dtype: of all tensors; "base": of each tensor as it is in ``base``
    """
    files: list[tuple[Path, list[TensorInfo]]] = []
    for number, shard in enumerate(_shards(_converted(model, state, base, dtype), max_shard_bytes)):
        file = folder / f"part-{number:05d}.safetensors"
        save_file(shard, file, metadata={"format": "pt"})
        let_others_read(file)
        files.append((file, [_info(name, tensor) for name, tensor in shard.items()]))
    written = {info.name for _, infos in files for info in infos}
    assert written == set(base.tensors), sorted(written ^ set(base.tensors))[:3]
    weight_map: dict[str, str] = {}
    for number, (file, infos) in enumerate(files, start=1):
        name = "model.safetensors"
        if len(files) > 1:
            name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        file.rename(folder / name)
        weight_map |= {info.name: name for info in infos}
    total = sum(info.num_bytes for _, infos in files for info in infos)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_atomic(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")


def _converted(
    model: Any, state: Tensors, base: Checkpoint, dtype: StoredDtype
) -> Iterator[Tensors]:
    """Yield the base's tensors of one layer after another, as they will be stored."""
    layout = base.layout
    for _, names in groupby(sorted(state, key=_layer), key=_layer):
        group = {name: state[name].detach().cpu() for name in names}
        own: Mapping[str, torch.Tensor] = revert_weight_conversion(model, group)
        tensors = {layout.whole_name(name): tensor for name, tensor in own.items()}
        # What is not in the base is tied to a tensor that is: check_names saw the others.
        yield {
            name: _stored(tensors[name], base.tensors[name], dtype)
            for name in sorted(tensors)
            if name in base.tensors
        }
    others = {n: info for n, info in base.tensors.items() if layout.own_name(n) is None}
    yield {name: _stored(base.tensor(name), info, dtype) for name, info in others.items()}


def _layer(name: str) -> int:
    found = _LAYER.search(name)
    return int(found[1]) if found else -1


def _stored(tensor: torch.Tensor, info: TensorInfo, dtype: StoredDtype) -> torch.Tensor:
    wanted = _DTYPES[_STORED.get(dtype, info.dtype)]
    return tensor.to(wanted, copy=True, memory_format=torch.contiguous_format)


def _info(name: str, tensor: torch.Tensor) -> TensorInfo:
    dtype = next(stored for stored, known in _DTYPES.items() if known == tensor.dtype)
    return TensorInfo(name, dtype, tuple(tensor.shape))


def _shards(groups: Iterator[Tensors], max_bytes: int) -> Iterator[Tensors]:
    shard: Tensors = {}
    size = 0
    for group in groups:
        for name, tensor in group.items():
            if shard and size + tensor.nbytes > max_bytes:
                yield shard
                shard, size = {}, 0
            shard[name] = tensor
            size += tensor.nbytes
    yield shard
