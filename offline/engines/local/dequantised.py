"""Quantised checkpoints opened with transformers: each matrix is decoded when it is loaded.

transformers knows some of these formats itself, each in its own way: GPTQ and AWQ with libraries
and kernels for GPUs, FP8 where blocks divide a matrix, experts of compressed-tensors not at all
once they are fused (docs/decisions/0026). It takes tensors by name from whoever has them, and asks
for each when its place is there; so what is read here is what any unquantised checkpoint would be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from offline.engines.quantised.decode import matrices_of, matrix_of, stacked
from offline.engines.quantised.forms import ASIDE, modules_of
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.quantisation import settings_of, unsettled
from vllm_moe_prune.roles import STACKED_PARTS, WEIGHT

_OF_THE_CACHE = (".q_scale", ".k_scale", ".v_scale")  # where a quantised cache is meant


@dataclass(frozen=True, slots=True)
class Unread:
    """A tensor that is made when transformers asks for it, as of a file: ``tensor[...]``."""

    read: Callable[[], Tensor]

    def __getitem__(self, _: Any, /) -> Tensor:
        return self.read()


def open_dequantised(folder: Path, dtype: str, **placed: Any) -> tuple[Any, Mapping[str, Any]]:
    """Open a quantised checkpoint's language model with transformers, in numbers of ``dtype``.

    :param placed: further arguments of transformers' `from_pretrained`
    :returns: the model, and what transformers tells of the loading
    :raises PruneError: if a format is not known
    """
    checkpoint = Checkpoint.open(folder)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    for part in (config, config.get_text_config()):
        for key in unsettled(vars(part)):
            delattr(part, key)
    if dtype == "auto" and getattr(config, "dtype", None) is None:
        dtype = "bfloat16"
    auto: Any = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        kind = type(auto.from_config(config))  # for which transformers wants a name otherwise
    tensors = unread(checkpoint)
    model, found = kind.from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True, **placed
    )
    if (folder / transformers.utils.GENERATION_CONFIG_NAME).exists():
        own = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
        model.generation_config = own
    return model, found


def unread(checkpoint: Checkpoint) -> dict[str, Unread]:
    """Return the tensors of the unquantised checkpoint that a quantised one stands for, by name."""
    settings, found = settings_of(checkpoint.config), dict[str, Unread]()
    tensors = checkpoint.tensors
    loaded = {n: info for n, info in tensors.items() if not checkpoint.layout.is_mtp(n)}
    for module, parts in modules_of(loaded).items():
        if "" in parts:
            if not module.endswith(_OF_THE_CACHE):
                found |= _alone(checkpoint, module)
            continue
        if parts.keys() - ASIDE:
            names = {part: info.name for part, info in parts.items() if part not in ASIDE}
            target = module if module in loaded else module + WEIGHT
            found[target] = Unread(_matrix(checkpoint, module, names, settings))
        if "bias" in parts and not _is_empty_bias(checkpoint, module):
            found[module + "bias"] = Unread(partial(checkpoint.tensor, module + "bias"))
    return found


def _matrix(
    checkpoint: Checkpoint, module: str, names: Mapping[str, str], settings: Mapping[str, Any]
) -> Callable[[], Tensor]:
    def read() -> Tensor:
        found = {part: checkpoint.tensor(name) for part, name in names.items()}
        if set(found) == {WEIGHT}:
            return found[WEIGHT]
        if any(part.ndim == 3 for part in found.values()):  # of all experts
            return torch.stack([one[:] for one in matrices_of(found, settings, module)])
        return matrix_of(found, settings, module.rstrip("."))[:]

    return read


def _alone(checkpoint: Checkpoint, name: str) -> dict[str, Unread]:
    """Return a tensor that is no part of a matrix; of stacked experts in MXFP4, both at once."""
    blocks, scales = STACKED_PARTS
    stem = name.removesuffix(scales)
    if name.endswith(scales) and stem + blocks in checkpoint.stored:
        return {}
    stem = name.removesuffix(blocks)
    if stem == name:
        return {name: Unread(lambda: checkpoint.tensor(name))}

    def read() -> Tensor:
        experts = stacked(checkpoint.tensor(name), checkpoint.tensor(stem + scales))
        return torch.stack([expert[:].T for expert in experts])  # transposed, as they are loaded

    return {stem: Unread(read)}


def _is_empty_bias(checkpoint: Checkpoint, module: str) -> bool:
    """Whether a bias is the zeros that GPTQ writes for every matrix.

    :raises PruneError: if an expert has a bias that is not zero
    """
    name = module + "bias"
    if module + "qweight" not in checkpoint.stored:
        return False
    is_empty = not bool(checkpoint.tensor(name).any())
    role = checkpoint.layout.classify(name)
    if role is not None and role.kind == "expert" and not is_empty:
        raise PruneError(f"{name} is not zero: transformers' experts of this family have no bias")
    return is_empty
