"""Quantised copies of random models, and what they stand for: for readers that know no format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vllm_moe_prune.checkpoint import Checkpoint

BLOCK = 128  # rows and columns of FP8 that share a scale
_GROUP = 32  # numbers of MXFP4 that share a scale
# What the 16 codes of FP4 (E2M1) stand for.
_HALF = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FP4 = torch.tensor([*_HALF, *(-value for value in _HALF)])
_EXPONENT = -5  # of all scales: weights with a deviation of 0.09, that is 1.5 / sqrt(256)
Tensors = dict[str, torch.Tensor]


def write_mxfp4(original: Path, quantised: Path, readable: Path) -> Path:
    """Write gpt-oss with random MXFP4 experts, and the bfloat16 model that these stand for.

    :param original: a random gpt-oss model, whose experts' weights are not used
    :returns: ``quantised``
    """
    generator = torch.Generator().manual_seed(0)

    def convert(name: str, weight: torch.Tensor) -> tuple[Tensors, Tensors] | None:
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            return None
        experts, inner, rows = weight.shape
        shape = (experts, rows, inner // _GROUP, _GROUP // 2)
        blocks = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        scales = torch.full(shape[:3], 127 + _EXPONENT, dtype=torch.uint8)
        # The lower half of a byte comes first.
        codes = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(2)
        values = _FP4[codes.long()] * 2.0**_EXPONENT
        plain = values.transpose(1, 2).to(weight.dtype).contiguous()
        return {f"{name}_blocks": blocks, f"{name}_scales": scales}, {name: plain}

    left = ["self_attn", "mlp.router"]
    config = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            *(f"model.layers.*.{one}" for one in left),
            "model.embed_tokens",
            "lm_head",
        ],
    }
    return _write_both(original, quantised, readable, convert, config)


def write_fp8_blocks(original: Path, quantised: Path, readable: Path) -> Path:
    """Write a model with its experts in FP8, a scale for 128 x 128, and what these stand for."""
    others: set[str] = set()

    def convert(name: str, weight: torch.Tensor) -> tuple[Tensors, Tensors] | None:
        if ".experts." not in name:
            if weight.dim() == 2:
                others.add(name.removesuffix(".weight"))
            return None
        rows, columns = (size // BLOCK for size in weight.shape)
        parts = weight.float().reshape(rows, BLOCK, columns, BLOCK)
        scales = parts.abs().amax(dim=(1, 3)) / 448.0
        wide = scales[:, None, :, None]
        values = (parts / wide).to(torch.float8_e4m3fn)
        plain = (values.float() * wide).reshape(weight.shape)
        stored = {name: values.reshape(weight.shape), f"{name}_scale_inv": scales}
        return stored, {name: plain}

    config = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": others,
    }
    return _write_both(original, quantised, readable, convert, config)


def _write_both(
    original: Path,
    quantised: Path,
    readable: Path,
    convert: Callable[[str, torch.Tensor], tuple[Tensors, Tensors] | None],
    config: dict[str, Any],
) -> Path:
    """Write both copies; ``convert`` returns None for a tensor that stays as it is."""
    checkpoint = Checkpoint.open(original)
    stored: Tensors = {}
    plain: Tensors = {}
    for name in checkpoint.tensors:
        weight = checkpoint.tensor(name)
        both = convert(name, weight)
        ours, theirs = both or ({name: weight}, {name: weight})
        stored |= ours
        plain |= theirs
    own = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    _write(original, readable, plain, checkpoint.config)
    _write(original, quantised, stored, {**checkpoint.config, "quantization_config": own})
    return quantised


def _write(original: Path, out: Path, tensors: Tensors, config: Mapping[str, Any]) -> None:
    out.mkdir()
    for file in original.glob("token*"):
        shutil.copy(file, out)
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config))
