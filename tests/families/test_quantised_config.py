"""What a quantiser wrote about single experts follows them to their new numbers."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline.build.build import build, plan_build
from offline.build.named_modules import Names
from offline.build.quantised import _settled
from tests.sample_maps import map_of, uniform_map
from tests.vllm_moe_prune.bare import write_bare
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.quantisation import settings_of

EXPERTS = "model.layers.{}.block_sparse_moe.experts.{}"
KEPT = [(3, 0), (1, 2)]


def base_with(folder: Path, settings: Any, key: str = "quantization_config") -> Checkpoint:
    write_bare(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: settings}))
    return Checkpoint.open(folder)


def built(folder: Path, settings: Any) -> Any:
    base = base_with(folder / "base", settings)
    build(base, uniform_map(base.folder, KEPT, top_k=1), folder / "out")
    return Checkpoint.open(folder / "out").config["quantization_config"]


def name(layer: int, expert: int, tail: str = "") -> str:
    return EXPERTS.format(layer, expert) + tail


def test_names_of_experts_follow_and_those_of_dropped_ones_go(tmp_path: Path) -> None:
    listed = [
        "lm_head",
        name(0, 3, ".w1"),  # becomes 0
        name(0, 1, ".w1"),  # is dropped
        name(1, 1),  # all of an expert; becomes 0
        name(1, 3),
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.block_sparse_moe.gate",
        "model.layers.7.of.another.model",
        "re:.*self_attn.*",
    ]
    found = built(tmp_path, {"quant_method": "x", "ignore": listed, "bits": 4, "none": None})
    assert found == {
        "quant_method": "x",
        "ignore": [
            "lm_head",
            name(0, 0, ".w1"),
            name(1, 0),
            *listed[5:],
        ],
        "bits": 4,
        "none": None,
    }


def test_names_in_keys_and_deeper_follow_as_well(tmp_path: Path) -> None:
    settings = {
        "modules_to_not_convert": [name(0, 3, ".w2")],
        "extra_config": {name(1, 2, ".w1"): {"bits": 16}, name(1, 0, ".w1"): {"bits": 8}},
        "config_groups": {"group_0": {"targets": ["Linear", name(0, 0, ".w3")]}},
    }
    assert built(tmp_path, settings) == {
        "modules_to_not_convert": [name(0, 0, ".w2")],
        "extra_config": {name(1, 1, ".w1"): {"bits": 16}},
        "config_groups": {"group_0": {"targets": ["Linear", name(0, 1, ".w3")]}},
    }


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        (r"re:.*experts\.3\.w1", [name(0, 0, ".w1")]),
        (r"re:.*experts\.(2|3)\.w2", [name(1, 1, ".w2"), name(0, 0, ".w2")]),
        (r"re:.*layers\.1\..*experts\.3\.", []),  # all of whom are dropped
        ("*.experts.3.w1", [name(0, 0, ".w1")]),
        (r"+:.*layers\.0\.\S*\.3\.w1", [r"+:^model\.layers\.0\.block_sparse_moe\.experts\.0\.w1$"]),
        (r".*1\.block_sparse_moe\.experts\.2\.w3", [f"^{re.escape(name(1, 1, '.w3'))}$"]),
    ],
)
def test_a_pattern_that_tells_experts_apart_is_written_out(
    pattern: str, left: list[str], tmp_path: Path
) -> None:
    found = built(tmp_path, {"ignore": ["lm_head", pattern]})["ignore"]
    assert found[0] == "lm_head" and sorted(found[1:]) == sorted(left)


def test_a_pattern_that_also_means_other_modules_goes_on_meaning_them(tmp_path: Path) -> None:
    (one, *others) = built(tmp_path, {"ignore": [r"re:.*(q_proj|experts\.3\.w1)"]})["ignore"]
    assert others == [name(0, 0, ".w1")]
    pattern = re.compile(one.removeprefix("re:"))
    assert pattern.match("model.layers.1.self_attn.q_proj") and pattern.match("other.q_proj")
    assert not pattern.match(name(0, 3, ".w1"))


def test_a_pattern_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    base = base_with(tmp_path / "base", {"ignore": ["re:.*(experts"]})
    with pytest.raises(PruneError, match=r"pattern re:\.\*\(experts, which cannot be read"):
        plan_build(base, uniform_map(base.folder, KEPT, top_k=1))


@pytest.mark.parametrize(
    "pattern",
    [
        r"re:.*experts\.\d+\.w1",
        r"re:.*layers\.1\..*experts.*",
        r"-:.*gate$",
        r"re:.*experts\.(0|1|2|3)\.w2",
        "model.layers.0.block_sparse_moe.experts*",
    ],
)
def test_a_pattern_that_does_not_stays(pattern: str, tmp_path: Path) -> None:
    assert built(tmp_path, {"ignore": [pattern]}) == {"ignore": [pattern]}


def test_a_name_of_an_expert_that_there_is_not_is_refused(tmp_path: Path) -> None:
    base = base_with(tmp_path / "base", {"ignore": ["experts.3.w1"]})
    with pytest.raises(PruneError, match=r"name experts\.3\.w1, which is no module"):
        plan_build(base, uniform_map(base.folder, KEPT, top_k=1))


def test_names_that_begin_otherwise_or_end_elsewhere_follow_as_well(tmp_path: Path) -> None:
    """As some settings leave out `model.`, and some name a matrix that vLLM alone has."""
    listed = [
        name(0, 3, ".w1").removeprefix("model."),
        "language_model." + name(1, 2),
        name(0, 0, ".gate_up_proj"),
        name(0, 1, ".gate_up_proj"),
    ]
    found = built(tmp_path, {"ignore": listed})["ignore"]
    assert found == [
        name(0, 0, ".w1").removeprefix("model."),
        "language_model." + name(1, 1),
        name(0, 1, ".gate_up_proj"),
    ]


@pytest.mark.parametrize("sections", [("text_config",), ("thinker_config", "text_config")])
def test_settings_in_a_section_of_config_json_follow(sections: tuple[str, ...]) -> None:
    inside: Any = {"quantization_config": {"ignore": [name(0, 3), name(0, 1)]}, "hidden_size": 4}
    config = functools.reduce(
        lambda value, key: {key: value, "other": [1]}, reversed(sections), inside
    )
    found = _settled(config, Names({name(0, 3): name(0, 0), name(0, 1): None}))
    for section in sections:
        assert found["other"] == [1]
        found = found[section]
    assert found == {"quantization_config": {"ignore": [name(0, 0)]}, "hidden_size": 4}
    assert settings_of(config) == inside["quantization_config"]


def test_settings_of_a_vision_tower_are_not_the_language_models() -> None:
    tower = {"vision_config": {"quantization_config": {"quant_method": "fp8"}}}
    assert settings_of(tower) == {}
    both = tower | {"text_config": {"compression_config": {"quant_method": "awq"}}}
    assert settings_of(both) == {"quant_method": "awq"}
    assert settings_of(both | {"quantization_config": {"bits": 4}}) == {"bits": 4}


def test_merged_experts_left_out_of_quantisation_stay_left_out(tmp_path: Path) -> None:
    """A layer whose experts are all in the list may be merged: they are not quantised."""
    listed = [name(1, expert, f".{w}") for expert in range(4) for w in ("w1", "w2", "w3")]
    base = base_with(tmp_path / "base", {"ignore": listed})
    matrix = np.array([[0, 0.5, 0.5, 0], [0, 0, 0, 1]], np.float32)
    layers = [
        LayerMap(layer=0, num_experts=4, num_kept=2, top_k=1, experts=Selection(kept=KEPT[0])),
        LayerMap(
            layer=1,
            num_experts=4,
            num_kept=2,
            top_k=1,
            experts=Selection(matrix="m"),
            router_rows=Selection(kept=(1, 3)),
        ),
    ]
    build(base, map_of(base.folder, layers, m=matrix), tmp_path / "out")
    found = Checkpoint.open(tmp_path / "out").config["quantization_config"]["ignore"]
    assert found == listed[:6]


def test_the_quantisers_own_file_follows_too(tmp_path: Path) -> None:
    write_bare(tmp_path / "base")
    settings = {"quantization": {"exclude_modules": ["lm_head", name(0, 3, ".w1")]}}
    (tmp_path / "base" / "hf_quant_config.json").write_text(json.dumps(settings))
    base = Checkpoint.open(tmp_path / "base")
    build(base, uniform_map(base.folder, KEPT, top_k=1), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())
    assert written == {"quantization": {"exclude_modules": ["lm_head", name(0, 0, ".w1")]}}
