"""Speculative decoding with a model of its own beside a pruned target."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.families.quantised import tensors_of, write
from tests.sample_maps import build_compact, mixed_map
from tests.tiny import make_tiny_llama, make_tiny_mixtral
from vllm_moe_prune.vllm_compat.drafts import is_other_draft, is_same_model

pytest.importorskip("vllm", reason="the plugin side needs vLLM")

from tests.vllm_probe import probe

PROMPTS = [[1, 5, 9, 20, 33, 7], [1, 40, 41, 42, 50, 51]]


def test_what_drafts_is_told_from_its_target(tmp_path: Path) -> None:
    target = SimpleNamespace(model=str(tmp_path))
    beside: Any = SimpleNamespace(speculative_config=SimpleNamespace(target_model_config=target))
    head: Any = SimpleNamespace(model="Org/Head-EAGLE3")
    assert is_other_draft(beside, head)
    assert not is_other_draft(beside, target)
    alone: Any = SimpleNamespace(speculative_config=None)
    assert not is_other_draft(alone, target)


def test_one_folder_has_many_names(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    out = str(tmp_path / "out")
    assert all(is_same_model(name, out) for name in (out, out + "/", str(tmp_path / "link")))
    assert not is_same_model(str(tmp_path), out)
    assert is_same_model("Org/Name", "Org/Name") and not is_same_model("Org/Name", "Org/Other")
    assert not is_same_model(None, out)


def make_eagle(folder: Path) -> Path:
    """Write an EAGLE head for `make_tiny_mixtral`: a Llama layer behind a joint of two inputs."""
    make_tiny_llama(folder)
    tensors = {n.removeprefix("model."): t for n, t in tensors_of(folder).items() if "layers" in n}
    del tensors["layers.0.input_layernorm.weight"]
    norm = "layers.0.post_attention_layernorm.weight"
    hidden = tensors[norm].numel()
    tensors[norm] = torch.linspace(0.5, 1.5, hidden)  # not what a new module has
    tensors["fc.weight"] = torch.eye(hidden).repeat(1, 2)
    write(folder, tensors, json.loads((folder / "config.json").read_text()))
    return folder


@pytest.mark.vllm
@pytest.mark.slow
def test_a_small_model_drafts_for_compact_and_map_only_targets(tmp_path: Path) -> None:
    base = make_tiny_mixtral(tmp_path / "base", layers=4)
    mixed_map(base).save(tmp_path / "map")
    extra = {"routing_map": str(tmp_path / "map")}
    draft = str(make_tiny_llama(tmp_path / "draft"))
    drafting = {"model": draft, "method": "draft_model", "num_speculative_tokens": 2}
    compact = build_compact(base, tmp_path / "out")
    common: dict[str, Any] = {"steps": 8, "load_format": "pruned_moe", "dtype": "float32"}
    expected = probe(compact, PROMPTS, **common)
    for model, more in ((compact, {}), (base, {"model_loader_extra_config": extra})):
        found = probe(model, PROMPTS, speculative_config=drafting, **more, **common)
        assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
