"""gpt-oss as it is released: experts in MXFP4, stacked, with random numbers."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.families.models import make_family
from tests.families.quantised import tensors_of, write
from vllm_moe_prune.checkpoint import Checkpoint


def make_mxfp4(folder: Path) -> tuple[Path, Path]:
    """Write a tiny gpt-oss in MXFP4 and the bfloat16 model that it stands for, and return both."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    config = Checkpoint.open(make_family("gpt_oss", folder / "drawn")).config
    generator = torch.Generator().manual_seed(0)
    packed, plain = {}, {}
    for name, tensor in tensors_of(folder / "drawn").items():
        if not ("experts" in name and name.endswith("_proj")):
            packed[name] = plain[name] = tensor.bfloat16()
            continue
        experts, columns, rows = tensor.shape  # transposed
        groups = (experts, rows, columns // 32)
        blocks = torch.randint(0, 256, (*groups, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(121, 124, groups, dtype=torch.uint8, generator=generator)
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        plain[name] = convert_moe_packed_tensors(blocks, scales).contiguous()
    left = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens"]
    quantised = {"quant_method": "mxfp4", "modules_to_not_convert": [*left, "lm_head"]}
    config = {**config, "dtype": "bfloat16"}
    base, readable = folder / "base", folder / "readable"
    for one in (base, readable):
        one.mkdir()
    write(base, packed, {**config, "quantization_config": quantised})
    write(readable, plain, config)
    return base, readable
