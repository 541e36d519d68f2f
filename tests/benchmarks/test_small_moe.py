"""The test-bed's weights in another family's network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.small_moe import FAMILIES, write_family
from benchmarks.testbed.model import make_testbed

IDS = torch.arange(5, 45).view(1, 40)


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return torch.log_softmax(model(IDS).logits, dim=-1)


def test_it_is_the_same_model_but_for_the_weights_of_experts(tmp_path: Path) -> None:
    expected = logits(make_testbed(tmp_path / "testbed", tasks=False))
    folder = tmp_path / "qwen2_moe"
    folder.mkdir()
    write_family("qwen2_moe", folder)
    config = json.loads((folder / "config.json").read_text())
    assert float((logits(folder) - expected).abs().max()) > 0.1
    (folder / "config.json").write_text(json.dumps(config | {"norm_topk_prob": True}))
    torch.testing.assert_close(logits(folder), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_a_family_is_there(family: str, tmp_path: Path) -> None:
    write_family(family, tmp_path)
    _, told = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
