"""Quantised checkpoints opened with transformers: the numbers that their tensors stand for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.dummy_model import write_tokenizer
from offline.engines.local.dequantised import unread
from offline.engines.local.transformers import TransformersEngine
from offline.engines.quantised import need
from offline.engines.quantised.need import check_dequantisable, dequantised
from tests.families.models import make_family
from tests.families.mtp import add_mtp
from tests.families.quantised import FORMATS, config_of, quantise, tensors_of, write
from tests.sample_maps import uniform_map
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError

ALWAYS = ("fp8-blocks", "gptq", "modelopt-nvfp4", "int4-asymmetric")
NAMES = [
    pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow) for name in sorted(FORMATS)
]
TEXT = [[1, 5, 9, 20, 33, 7, 11]]
SIZES = {"hidden": 128, "intermediate": 128, "heads": 4, "kv_heads": 4}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "m"
    return make_tiny_mixtral(folder, layers=1, dtype="bfloat16", **SIZES)


def logits(folder: Path, offload: Path | None = None) -> torch.Tensor:
    return TransformersEngine(folder, dtype="float32", offload=offload).logits(TEXT)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_model_of_the_decoded_tensors(
    name: str, original: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also the attention's, in more than one file; config.json says nothing of it afterwards."""
    settings = {"quant_method": "x", "weight_block_size": [128, 128]}
    base = quantise(original, tmp_path / "q", FORMATS[name], settings, shards=2, more="self_attn")
    plain = tmp_path / "plain"
    plain.mkdir()
    tensors = {k: v.read().float().contiguous() for k, v in unread(Checkpoint.open(base)).items()}
    assert tensors.keys() == tensors_of(original).keys()
    config = {k: v for k, v in json.loads((base / "config.json").read_text()).items()}
    del config["quantization_config"]
    write(plain, tensors, config)
    write_tokenizer(plain, 128)
    found = logits(base)
    assert found.isfinite().all()
    assert torch.equal(found, logits(plain))
    expected = dequantised(base)
    assert expected is not None
    assert expected.numbers == sum(tensor.numel() for tensor in tensors.values())
    assert expected.stored == Checkpoint.open(base).num_bytes
    assert expected.line("float32") in caplog.messages


@pytest.mark.parametrize("name", ["fp8-blocks", "int4"])
def test_it_is_what_transformers_dequantises(name: str, original: Path, tmp_path: Path) -> None:
    """Bit by bit, in bfloat16: in float32 its own way ends with an error."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig, FineGrainedFP8Config

    config = config_of(name)
    base = quantise(original, tmp_path / "q", FORMATS[name], config)
    found = TransformersEngine(base, dtype="bfloat16").logits(TEXT)
    own: Any = CompressedTensorsConfig(run_compressed=False)
    if name == "fp8-blocks":
        left = config["modules_to_not_convert"]
        own = FineGrainedFP8Config(dequantize=True, modules_to_not_convert=left)
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, quantization_config=own
    )
    with torch.no_grad():
        expected = model(torch.tensor(TEXT)).logits.float()
    assert torch.equal(found, expected)


def test_layer_by_layer_and_under_a_map(original: Path, tmp_path: Path) -> None:
    base = quantise(original, tmp_path / "q", FORMATS["gptq"], {"quant_method": "gptq"})
    engine = TransformersEngine(base, dtype="float32")
    whole = engine.logits(TEXT)
    assert torch.equal(logits(base, offload=tmp_path), whole)
    engine.apply(uniform_map(base, [(0, 1, 2, 3)]))
    pruned = engine.logits(TEXT)
    assert not torch.equal(pruned, whole)
    engine.apply(None)
    assert torch.equal(engine.logits(TEXT), whole)


def test_a_deepseek_as_it_is_released(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Attention in FP8 blocks that divide nothing, a draft layer, scales of the cache; masked."""
    original, plain = tmp_path / "original", tmp_path / "plain"
    make_family("deepseek_v3", original)
    add_mtp("deepseek_v3", original)
    write_tokenizer(original, 60)
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    base = quantise(original, tmp_path / "q", FORMATS["fp8-blocks"], settings, more="self_attn")
    tensors = tensors_of(base)
    write(
        base,
        tensors | {"model.layers.0.self_attn.k_scale": torch.ones(())},
        json.loads((base / "config.json").read_text()),
    )
    restored = {
        name: (tensor.float() * _wide(tensors[name + "_scale_inv"], tensor.shape))
        if name + "_scale_inv" in tensors
        else tensor
        for name, tensor in tensors.items()
        if not name.endswith("scale_inv")
    }
    plain.mkdir()
    write(plain, restored, json.loads((original / "config.json").read_text()))
    write_tokenizer(plain, 60)
    found = TransformersEngine(base, dtype="float32")
    assert "UNEXPECTED" not in caplog.text and "MISSING" not in caplog.text
    expected = TransformersEngine(plain, dtype="float32")
    assert torch.equal(found.logits(TEXT), expected.logits(TEXT))
    counts = found.expert_counts
    kept = [(0, 1, 4, 5)] * len(counts)
    assert set(counts.values()) == {8}, counts
    for engine in (found, expected):
        engine.apply(uniform_map(engine.folder, kept))
    assert torch.equal(found.logits(TEXT), expected.logits(TEXT))


def _wide(scales: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    wide = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
    return wide[: shape[0], : shape[1]]


def test_stacked_mxfp4(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    original, base = tmp_path / "original", tmp_path / "base"
    make_family("gpt_oss", original)
    write_tokenizer(original, 60)
    tensors, plain = tensors_of(original), tensors_of(original)
    for name in [name for name in tensors if name.endswith("_proj") and "experts" in name]:
        experts, columns, rows = tensors.pop(name).shape  # transposed
        groups = (experts, rows, columns // 32)
        blocks = torch.randint(0, 256, (*groups, 16), dtype=torch.uint8)
        scales = torch.randint(115, 122, groups, dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        plain[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()
    shutil.copytree(original, base)
    config = json.loads((original / "config.json").read_text())
    write(original, plain, config)
    write(base, tensors, config | {"quantization_config": {"quant_method": "mxfp4"}})
    assert torch.equal(logits(base), logits(original))
    found = dequantised(base)
    assert found is not None and found.forms == ("MXFP4",)
    assert found.numbers == sum(tensor.numel() for tensor in plain.values())


def test_a_quantiser_may_have_written_a_file_of_its_own(original: Path, tmp_path: Path) -> None:
    base = quantise(original, tmp_path / "q", FORMATS["gptq"], {"quant_method": "gptq"})
    expected = logits(base)
    config = json.loads((base / "config.json").read_text())
    (base / "quantize_config.json").write_text(json.dumps(config.pop("quantization_config")))
    (base / "config.json").write_text(json.dumps(config))
    assert torch.equal(logits(base), expected)


def test_a_bias_that_an_expert_cannot_have_is_refused(original: Path, tmp_path: Path) -> None:
    def biased(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        return FORMATS["gptq"](weight) | {"bias": torch.ones(len(weight)).half()}

    base = quantise(original, tmp_path / "q", biased, {"quant_method": "gptq"})
    with pytest.raises(PruneError, match=r"w1\.bias is not zero"):
        logits(base)


def test_what_does_not_fit_is_refused_with_its_size(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = quantise(original, tmp_path / "q", FORMATS["awq"], {"quant_method": "awq"})
    monkeypatch.setattr(need, "free_bytes", lambda device: 2**19)
    complaint = (
        r"q is quantised \(AWQ\): 0\.\d\d MiB on disk are dequantised to 0\.\d\d MiB and take "
        r"that much memory, of which 0\.50 MiB are free"
    )
    with pytest.raises(PruneError, match=complaint) as caught:
        check_dequantisable(base, otherwise="--engine vllm")
    assert caught.value.hint == "--engine vllm"
    check_dequantisable(base, otherwise="", in_parts=True)
    check_dequantisable(original, otherwise="")  # which is not quantised
    monkeypatch.setattr(need, "free_bytes", lambda device: 2**30)
    check_dequantisable(base, otherwise="")
