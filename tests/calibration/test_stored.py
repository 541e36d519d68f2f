"""Weight statistics from a checkpoint's own tensors, in the formats in which experts are stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.dummy_model import write_tokenizer
from offline.calibration.gradients import fused_weights, gate_weight, matrices_of
from offline.calibration.stored import check_readable, experts_of, stored_weights
from offline.calibration.weights import weight_statistics
from offline.engines.local.dequantised import unread
from offline.engines.local.transformers import TransformersEngine
from tests.calibration import naive
from tests.families.models import make_family
from tests.families.quantised import FORMATS, config_of, dequantise, quantise, tensors_of, write
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError

READ = ("int8", "int4", "fp8", "fp8-blocks")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sizes of which FP8's blocks of 128 are no multiple."""
    folder = tmp_path_factory.mktemp("original") / "m"
    return make_tiny_mixtral(folder, dtype="bfloat16", hidden=192, intermediate=320, layers=1)


@pytest.mark.parametrize("name", READ)
def test_quantised_experts_are_decoded(name: str, original: Path, tmp_path: Path) -> None:
    base = quantise(original, tmp_path / "base", FORMATS[name], config_of(name))
    readable = dequantise(base, tmp_path / "readable", name)
    found, expected = Checkpoint.open(base), Checkpoint.open(readable)
    for one, other in zip(experts_of(found, 0), experts_of(expected, 0), strict=True):
        for ours, theirs in zip(one, other, strict=True):
            assert ours.shape == theirs.shape
            torch.testing.assert_close(ours[100:105], theirs[100:105].float(), rtol=1e-2, atol=1e-5)
    # compressed-tensors rounds what it restores to bfloat16.
    naive.assert_same(stored_weights(found, 0), stored_weights(expected, 0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - set(READ)))
def test_all_formats_have_weight_criteria(name: str, original: Path, tmp_path: Path) -> None:
    """As those of a checkpoint with the same numbers, stored as they are."""
    base = Checkpoint.open(quantise(original, tmp_path / "q", FORMATS[name], {"quant_method": "x"}))
    tensors = {name: one.read().float() for name, one in unread(base).items()}
    config = {k: v for k, v in base.config.items() if k != "quantization_config"}
    (tmp_path / "plain").mkdir()
    write(tmp_path / "plain", {k: v.contiguous() for k, v in tensors.items()}, config)
    check_readable(base)
    plain = stored_weights(Checkpoint.open(tmp_path / "plain"), 0)
    naive.assert_same(stored_weights(base, 0), plain, rtol=1e-6)


def test_an_unknown_format_is_refused_by_its_parts(original: Path, tmp_path: Path) -> None:
    def bare(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"weight": weight.to(torch.float8_e4m3fn)}

    base = quantise(original, tmp_path / "base", bare, {"quant_method": "any"})
    with pytest.raises(PruneError, match="w1 is stored as weight: that format cannot be decoded"):
        check_readable(Checkpoint.open(base))


# Others have gates elsewhere, or experts without gates.
_ODD = ("afmoe", "gemma4_text", "hunyuan_v1_moe", "nemotron_h")


@pytest.mark.parametrize(
    "family",
    [
        *("mixtral", "gpt_oss", "granitemoe", "llama4_text"),
        *(pytest.param(family, marks=pytest.mark.slow) for family in _ODD),
    ],
)
def test_matrices_are_those_of_the_loaded_model(family: str, tmp_path: Path) -> None:
    make_family(family, tmp_path)
    write_tokenizer(tmp_path, 60)
    checkpoint = Checkpoint.open(tmp_path)
    engine = TransformersEngine(tmp_path, dtype="float32")
    for number, control in engine.layers.items():
        matrices = matrices_of(control, fused_weights(control))
        expected = weight_statistics(gate_weight(control), matrices)
        naive.assert_same(stored_weights(checkpoint, number), expected, rtol=1e-9)


def test_mxfp4_is_decoded_as_transformers_does(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    make_family("gpt_oss", tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    tensors, plain = tensors_of(tmp_path), {}
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith("_proj") and "experts" in name]:
        experts, columns, rows = tensors.pop(name).shape  # transposed
        groups = (experts, rows, columns // 32)
        blocks = torch.randint(0, 256, (*groups, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(110, 130, groups, dtype=torch.uint8, generator=generator)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        plain[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()
    kept = {name: one for name, one in tensors.items() if "_blocks" not in name}
    readable = {name: one for name, one in kept.items() if "_scales" not in name} | plain
    for folder, parts in (("base", tensors), ("readable", readable)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, parts, checkpoint.config)
    found = stored_weights(Checkpoint.open(tmp_path / "base"), 1)
    naive.assert_same(found, stored_weights(Checkpoint.open(tmp_path / "readable"), 1), rtol=1e-6)
