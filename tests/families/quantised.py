"""Quantised copies of small checkpoints, in the formats in which the hub has them.

compressed-tensors makes its own formats. Of the others names, dtypes and shapes are as their tools
write them and the numbers are random: what is tested with them moves bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file
from torch import Tensor

from vllm_moe_prune.checkpoint import INDEX_FILE, Checkpoint

GROUP = 64  # of INT4 and GPTQ
BLOCK = 128  # of FP8 in blocks
Parts = dict[str, Tensor]

_COMPRESSED: Mapping[str, tuple[str, dict[str, Any]]] = {
    "int8": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
    "fp8": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "int4": (
        "pack-quantized",
        {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP},
    ),
}
_TOKENS = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}


def _compressed(weight: Tensor, name: str) -> Parts:
    """Quantise a matrix [N, K] symmetrically, as compressed-tensors does."""
    scheme = _scheme(name)
    args = scheme.weights
    assert args is not None
    groups = weight.reshape(len(weight), -1, args.group_size or weight.shape[1])
    limit = 448.0 if args.type == "float" else 2 ** (args.num_bits - 1) - 1
    scale = (groups.abs().amax(dim=-1) / limit).to(weight.dtype)
    state = {"weight": weight, "weight_scale": scale}
    return dict(BaseCompressor.get_value_from_registry(scheme.format).compress(state, scheme))


def _scheme(name: str) -> QuantizationScheme:
    stored, args = _COMPRESSED[name]
    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args), format=stored)


def restored(parts: Parts, name: str) -> Tensor:
    """Return the matrix that parts in one of the formats of ``SERVED`` stand for."""
    if name == "fp8-blocks":
        return parts["weight"].float() * _widened(parts["weight_scale_inv"], parts["weight"].shape)
    scheme = _scheme(name)
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    return torch.as_tensor(compressor.decompress(dict(parts), scheme)["weight"])


def _widened(scales: Tensor, shape: torch.Size) -> Tensor:
    rows, columns = shape
    wide = scales.repeat_interleave(BLOCK, dim=0).repeat_interleave(BLOCK, dim=1)
    return wide[:rows, :columns]


SERVED = ("int8", "int4", "fp8-blocks")  # by vLLM on a CPU


def config_of(name: str) -> dict[str, Any]:
    """Return the `quantization_config` of a Mixtral of 2 layers whose experts are quantised."""
    if name == "fp8-blocks":
        attention = [f"self_attn.{projection}_proj" for projection in "qkvo"]
        others = [*attention, "block_sparse_moe.gate"]
        left = [f"model.layers.{layer}.{one}" for layer in range(2) for one in others]
        return {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
            "modules_to_not_convert": ["lm_head", *left],
        }
    stored, args = _COMPRESSED[name]
    activations = _TOKENS if name == "int8" else None
    group = {"targets": ["Linear"], "weights": args, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": stored,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {**group, "format": stored}},
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*gate$"],
    }


def _codes(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Random bytes as a tensor of any dtype; of floating ones, finite numbers above zero."""
    size, most = (
        torch.empty((), dtype=dtype).element_size(),
        127 if dtype.is_floating_point else 256,
    )
    return torch.randint(1, most, (rows, columns * size), dtype=torch.uint8).view(dtype)


def _fp8_blocks(weight: Tensor) -> Parts:
    rows, columns = (-(-size // BLOCK) for size in weight.shape)
    padded = torch.zeros(rows * BLOCK, columns * BLOCK)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    scales = padded.reshape(rows, BLOCK, columns, BLOCK).abs().amax(dim=(1, 3)) / 448.0
    values = (weight.float() / _widened(scales, weight.shape)).to(torch.float8_e4m3fn)
    return {"weight": values, "weight_scale_inv": scales}


def _gptq(weight: Tensor) -> Parts:
    rows, columns = weight.shape
    return {
        "qweight": _codes(columns // 8, rows, torch.int32),
        "qzeros": _codes(columns // GROUP, rows // 8, torch.int32),
        "scales": torch.rand(columns // GROUP, rows).half(),
        "g_idx": torch.arange(columns, dtype=torch.int32) // GROUP,
        "bias": torch.zeros(rows).half(),
    }


def _awq(weight: Tensor) -> Parts:
    rows, columns = weight.shape
    return {
        "qweight": _codes(columns, rows // 8, torch.int32),
        "qzeros": _codes(columns // GROUP, rows // 8, torch.int32),
        "scales": torch.rand(columns // GROUP, rows).half(),
    }


def _static_int8(weight: Tensor) -> Parts:
    parts = _compressed(weight, "int8")
    rows = len(weight)
    return parts | {
        "weight_zero_point": _codes(rows, 1, torch.int8),
        "input_scale": torch.rand(1),
        "input_zero_point": torch.zeros(1, dtype=torch.int8),
    }


def _asymmetric_int4(weight: Tensor) -> Parts:
    parts = _compressed(weight, "int4")
    rows, columns = weight.shape
    return parts | {
        "weight_zero_point": _codes(rows // 8, columns // GROUP, torch.int32),
        "weight_g_idx": torch.arange(columns, dtype=torch.int32) // GROUP,
    }


def _nvfp4(weight: Tensor) -> Parts:
    rows, columns = weight.shape
    return {
        "weight_packed": _codes(rows, columns // 2, torch.uint8),
        "weight_scale": _codes(rows, columns // 16, torch.float8_e4m3fn),
        "weight_global_scale": torch.rand(1),
        "input_global_scale": torch.rand(1),
    }


def _modelopt(weight: Tensor) -> Parts:
    rows, columns = weight.shape
    return {
        "weight": _codes(rows, columns // 2, torch.uint8),
        "weight_scale": _codes(rows, columns // 16, torch.float8_e4m3fn),
        "weight_scale_2": torch.rand(()),
        "input_scale": torch.rand(()),
    }


FORMATS: Mapping[str, Callable[[Tensor], Parts]] = {
    "fp8-blocks": _fp8_blocks,
    "int8": lambda weight: _compressed(weight, "int8"),
    "int8-static": _static_int8,
    "fp8": lambda weight: _compressed(weight, "fp8"),
    "int4": lambda weight: _compressed(weight, "int4"),
    "int4-asymmetric": _asymmetric_int4,
    "nvfp4": _nvfp4,
    "modelopt-nvfp4": _modelopt,
    "gptq": _gptq,
    "awq": _awq,
}


def quantise(
    base: Path,
    out: Path,
    parts_of: Callable[[Tensor], Parts],
    config: Mapping[str, Any],
    *,
    shards: int = 1,
    more: str = "",
) -> Path:
    """Write a copy of a checkpoint whose experts' matrices are ``parts_of`` them.

    :param config: its `quantization_config`
    :param more: what other matrices are to be quantised have in their names
    """
    checkpoint = Checkpoint.open(base)
    out.mkdir()
    tensors: Parts = {}
    for name in checkpoint.tensors:
        role, tensor = checkpoint.layout.classify(name), checkpoint.tensor(name)
        chosen = bool(more) and more in name and name.endswith("_proj.weight")
        if not chosen and (role is None or role.kind != "expert"):
            tensors[name] = tensor
            continue
        for part, value in parts_of(tensor).items():
            tensors[name.removesuffix("weight") + part] = value.contiguous()
    for file in base.iterdir():
        if "safetensors" not in file.name and file.name != "config.json":
            (out / file.name).write_bytes(file.read_bytes())
    write(out, tensors, {**checkpoint.config, "quantization_config": dict(config)}, shards=shards)
    return out


def write(folder: Path, tensors: Parts, config: Mapping[str, Any], *, shards: int = 1) -> None:
    """Write tensors and config into a folder, whose tensors alternate between the shards."""
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[number::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def dequantise(quantised: Path, out: Path, name: str) -> Path:
    """Write the checkpoint that a quantised one stands for, for readers that know no format."""
    checkpoint = Checkpoint.open(quantised)
    out.mkdir()
    tensors: Parts = {}
    experts: dict[str, Parts] = {}
    for key in checkpoint.tensors:
        role, tensor = checkpoint.layout.classify(key), checkpoint.tensor(key)
        if role is None or role.kind != "expert":
            tensors[key] = tensor
        else:
            experts.setdefault(key.removesuffix(role.part), {})[role.part] = tensor
    for stem, parts in experts.items():
        tensors[stem + "weight"] = restored(parts, name).to(torch.float32).contiguous()
    write(out, tensors, {k: v for k, v in checkpoint.config.items() if "quant" not in k})
    return out


def tensors_of(folder: Path) -> Parts:
    """Return all tensors of a folder."""
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
