"""Quantised checkpoints as their tools write them, tiny and of random bytes, and who reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.judge import Outcome, command, function
from tests.sample_maps import uniform_map

EXPERTS, SIZE, GROUP = 3, 64, 32
KEPT = [(0, 2)]
Parts = Mapping[str, tuple[str, tuple[int, ...]]]  # part -> dtype, shape
_BYTES = {"F32": 4, "I32": 4, "F16": 2, "BF16": 2}  # others have one
_FORMATS: Mapping[str, Parts] = {
    "fp8": {"weight": ("F8_E4M3", (SIZE, SIZE)), "weight_scale_inv": ("F32", (2, 2))},
    "gptq": {
        "qweight": ("I32", (SIZE // 8, SIZE)),
        "qzeros": ("I32", (SIZE // GROUP, SIZE // 8)),
        "scales": ("F16", (SIZE // GROUP, SIZE)),
        "g_idx": ("I32", (SIZE,)),
    },
    "awq": {
        "qweight": ("I32", (SIZE, SIZE // 8)),
        "qzeros": ("I32", (SIZE // GROUP, SIZE // 8)),
        "scales": ("F16", (SIZE // GROUP, SIZE)),
    },
    "int4": {
        "weight_packed": ("I32", (SIZE, SIZE // 8)),
        "weight_scale": ("BF16", (SIZE, SIZE // GROUP)),
        "weight_shape": ("I32", (2,)),
    },
    "nvfp4": {
        "weight": ("U8", (SIZE, SIZE // 2)),
        "weight_scale": ("F8_E4M3", (SIZE, SIZE // 16)),
        "weight_scale_2": ("F32", ()),
        "input_scale": ("F32", ()),
    },
}
_MADE = {  # what is no number of a matrix
    "g_idx": np.arange(SIZE, dtype=np.int32) // GROUP,
    "weight_shape": np.array([SIZE, SIZE], dtype=np.int32),
}
_LEFT = ["lm_head", "model.layers.0.self_attn.q_proj", "model.layers.0.block_sparse_moe.gate"]
_ONE = "model.layers.0.block_sparse_moe.experts.1.w1"  # by itself, as some quantisers name it
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
_GPTQ |= {"dynamic": {f"-:{_ONE}": {}}, "modules_in_block_to_quantize": [["block_sparse_moe"]]}
_ARGS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
SETTINGS: Mapping[str, dict[str, Any]] = {
    "fp8": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [GROUP, GROUP],
        "modules_to_not_convert": [*_LEFT, _ONE],
    },
    "gptq": _GPTQ,
    "awq": {
        "quant_method": "awq",
        "bits": 4,
        "group_size": GROUP,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["gate", _ONE],
    },
    "int4": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear", f"re:.*{_ONE}"], "weights": _ARGS}},
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*gate$"],
    },
}
_BESIDE = {
    "producer": {"name": "modelopt", "version": "0.33"},
    "quantization": {
        "quant_algo": "NVFP4",
        "kv_cache_quant_algo": None,
        "group_size": 16,
        "exclude_modules": [*_LEFT, _ONE],
        "quantized_layers": {_ONE: {"quant_algo": "NVFP4", "group_size": 16}},
    },
}


def write_quantised(folder: Path) -> None:
    """Write a checkpoint in each format, with a map for it."""
    for name, parts in _FORMATS.items():
        _write(folder / name, parts, SETTINGS.get(name))
        uniform_map(folder / name, KEPT, top_k=1).save(folder / f"{name}-map")
    (folder / "nvfp4" / "hf_quant_config.json").write_text(json.dumps(_BESIDE))
    (folder / "gptq" / "quantize_config.json").write_text(json.dumps(_GPTQ))


def _write(folder: Path, parts: Parts, settings: dict[str, Any] | None) -> None:
    folder.mkdir()
    config = {"model_type": "mixtral", "num_local_experts": EXPERTS, "num_experts_per_tok": 1}
    config |= {"hidden_size": SIZE, "num_hidden_layers": 1, "tie_word_embeddings": True}
    more = {} if settings is None else {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config | more))
    layer = "model.layers.0"
    tensors = {
        "model.embed_tokens.weight": ("F32", (8, SIZE)),
        f"{layer}.self_attn.q_proj.weight": ("F32", (SIZE, SIZE)),
        f"{layer}.block_sparse_moe.gate.weight": ("F32", (EXPERTS, SIZE)),
    }
    for expert in range(EXPERTS):
        for matrix in ("w1", "w2", "w3"):
            stem = f"{layer}.block_sparse_moe.experts.{expert}.{matrix}."
            tensors |= {stem + part: info for part, info in parts.items()}
    _save(folder / "model.safetensors", tensors)


def _save(file: Path, tensors: Parts) -> None:
    """Write tensors of small random bytes, of dtypes that numpy does not know as well."""
    rng, header, data = np.random.default_rng(0), {}, b""
    for name, (dtype, shape) in tensors.items():
        count = math.prod(shape) * _BYTES.get(dtype, 1)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), 0]}
        data += _MADE.get(name.rpartition(".")[2], rng.integers(1, 60, count, np.uint8)).tobytes()
        header[name]["data_offsets"] = [len(data) - count, len(data)]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def read_quantised(name: str) -> Any:
    """Return what builds from a checkpoint, and decodes its matrices."""

    def act(folder: Path) -> Outcome:
        words = ("--model", folder / name, "--map", folder / f"{name}-map", "--allow-other-base")
        built = command("build", *words, "--out", folder / "made")
        if built.wrong:
            return built
        decoded = function(lambda: _decode(folder / name))
        return decoded if decoded.wrong else built

    return act


def _decode(folder: Path) -> None:
    from offline.calibration.stored import check_readable, experts_of
    from offline.engines.quantised.need import dequantised
    from vllm_moe_prune.checkpoint import Checkpoint

    dequantised(folder)
    base = Checkpoint.open(folder)
    check_readable(base)
    for expert in experts_of(base, 0):
        for matrix in expert:
            matrix[:].float()
