"""A base in which tensors are missing is refused by name; a released model is not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from offline.build.whole import check_whole_base
from tests.command import one_error, run
from tests.families.released.reader import MODELS, Released
from tests.sample_maps import uniform_map
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.checkpoint import INDEX_FILE, Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layouts import layout_of

LOST = {
    "model.layers.2.self_attn.q_proj.weight": "lacks model.layers.2.self_attn.q_proj.weight",
    "lm_head.weight": "lacks lm_head.weight, which its config.json does not tie to the embeddings",
    "model.embed_tokens.weight": "lacks the embeddings of its tokens",
    "model.layers.3.": "lacks layer 3",
    "model.layers.0.input_layernorm.weight": "lacks model.layers.0.input_layernorm.weight",
}


def without(folder: Path, begin: str) -> None:
    """Take all tensors whose names begin so out of a checkpoint of one file."""
    from safetensors.numpy import load_file, save_file

    file = folder / "model.safetensors"
    kept = {name: one for name, one in load_file(file).items() if not name.startswith(begin)}
    save_file(kept, file)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = make_tiny_mixtral(tmp_path / "model", layers=4, shards=1)
    assert not (folder / INDEX_FILE).exists()
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    return folder


@pytest.mark.parametrize("begin", LOST)
def test_what_is_missing_is_named(
    begin: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_whole_base(Checkpoint.open(model))
    uniform_map(model, [(0, 2, 5, 7)] * 4).save(tmp_path / "map")
    without(model, begin)
    words: list[Any] = ["build", "--model", model, "--map", tmp_path / "map"]
    assert LOST[begin] in one_error(*run(*words, "--out", tmp_path / "out", capsys=capsys))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("begin", ["model.norm.weight", "model.layers.1.self_attn.k_proj.weight"])
def test_transformers_makes_nothing_up(begin: str, model: Path) -> None:
    from offline.engines.local.pretrained import from_pretrained

    assert from_pretrained(model, "float32") is not None
    without(model, begin)
    with pytest.raises(PruneError, match=rf"lacks {re.escape(begin)}"):
        from_pretrained(model, "float32")


def named(model: Released) -> Checkpoint:
    """Return as much of a checkpoint as is asked of: the names of its tensors."""
    config = model.config(model.experts, model.top_k)
    parts = ("tensors", "drafts")
    names = {one.name: None for part in parts for one in model.tensors(2, part=part)}
    layout = layout_of(config)
    layout = layout.settled(names)
    text = layout.text_config(config)
    made = SimpleNamespace(
        folder=Path("released"), config=config, layout=layout, tensors=names, text_config=text
    )
    return cast(Checkpoint, made)


_CASES = [
    pytest.param(name, marks=() if number % 8 == 0 else pytest.mark.slow)
    for number, name in enumerate(sorted(MODELS))
]


@pytest.mark.parametrize("name", _CASES)
def test_no_released_model_lacks_anything(name: str) -> None:
    check_whole_base(named(Released.read(name)))


@pytest.mark.parametrize(
    "name",
    ["databricks--dbrx-instruct", "meituan-longcat--LongCat-Flash-Chat", "mistralai--Mixtral-8x7B"],
)
def test_a_released_model_whose_last_layer_is_lost_is_refused(name: str) -> None:
    """Whatever word its config has for the number of layers."""
    released = next(one for one in MODELS if one.startswith(name))
    whole = named(Released.read(released))
    last = max(whole.layout.place(tensor)[0] for tensor in whole.tensors)
    for tensor in [one for one in whole.tensors if whole.layout.place(one)[0] == last]:
        del cast(dict[str, Any], whole.tensors)[tensor]
    with pytest.raises(PruneError, match=f"lacks layer {last}"):
        check_whole_base(whole)
