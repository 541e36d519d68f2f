"""A release whose settings stand in text_config and in a file, read by readers of their own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from offline.build.build import build
from tests.families.released.reader import Released, write
from tests.sample_maps import uniform_map
from vllm_moe_prune.checkpoint import Checkpoint

MODEL = "moonshotai--Kimi-K2.5"
EXPERT = "language_model.model.layers.{}.mlp.experts.{}"
LAYER, EXPERTS = 60, 8
KEPT = (5, 0, 6, 3)


def said(entries: list[str], names: list[str]) -> list[bool]:
    """Whether entries of a list are about modules: whole names, or `re:` and an expression."""
    return [
        any(
            re.match(entry[3:], name) if entry.startswith("re:") else entry in (name, name[15:])
            for entry in entries
        )
        for name in names
    ]


def test_settings_of_a_section_and_of_a_file_have_new_numbers(tmp_path: Path) -> None:
    model = Released.read(MODEL, small=True)
    config: dict[str, Any] = model.config(model.experts, model.top_k)
    listed = [
        "re:.*self_attn.*",
        r"re:.*layers\.60\..*experts\.[3-5]\.up_proj",
        EXPERT.format(LAYER, 6) + ".down_proj",
        EXPERT.format(LAYER, 1) + ".down_proj",  # goes
        EXPERT.format(LAYER, 0).removeprefix("language_model.") + ".gate_proj",
    ]
    config["text_config"]["quantization_config"] = {"quant_method": "compressed-tensors"} | {
        "ignore": listed
    }
    write(tmp_path / "base", config, list(model.tensors(model.experts)), contents=True)
    beside = {"quantization": {"exclude_modules": ["lm_head", EXPERT.format(LAYER, 6)]}}
    (tmp_path / "base" / "hf_quant_config.json").write_text(json.dumps(beside))
    base = Checkpoint.open(tmp_path / "base")
    layers = len(base.expert_counts())
    build(base, uniform_map(base.folder, [KEPT] * layers, top_k=2), tmp_path / "out", mtp="drop")
    after = json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]
    tails = (".gate_proj", ".up_proj", ".down_proj")
    old, new = (
        [EXPERT.format(LAYER, number) + tail for number in numbers for tail in tails]
        for numbers in (KEPT, range(len(KEPT)))
    )
    before = said(listed, old)
    assert sum(before) == 4
    assert said(after["quantization_config"]["ignore"], new) == before
    others = ["language_model.model.layers.60.self_attn.o_proj", "language_model.lm_head"]
    assert said(after["quantization_config"]["ignore"], others) == [True, False]
    file = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())
    assert file == {"quantization": {"exclude_modules": ["lm_head", EXPERT.format(LAYER, 2)]}}
