"""What vLLM would refuse, or serve wrongly, is said of a checkpoint's tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from offline.lint.schemes import kinds_of
from offline.lint.tensors import lint_tensors
from tests.families.bare import write_bare
from tests.families.models import load, make_family
from tests.families.quantised import FORMATS, config_of
from tests.families.released.reader import MODELS, Released, first_of_each
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.layouts import layout_of
from vllm_moe_prune.quantisation import settings_of
from vllm_moe_prune.rewrite import TensorInfo

EXPERTS = "model.layers.0.block_sparse_moe.experts"
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
# As compressed-tensors describes what FORMATS has; a static scheme names what it measured.
STATIC = {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False}


def compressed(
    stored: str, weights: dict[str, Any], inputs: dict[str, Any] | None
) -> dict[str, Any]:
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": inputs,
        "format": stored,
    }
    return {"quant_method": "compressed-tensors", "format": stored, "config_groups": {"g": group}}


INT8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64}
FP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
# format -> the settings that its tools write
SETTINGS: dict[str, dict[str, Any]] = {
    "fp8-blocks": FP8,
    "int8": config_of("int8"),
    "int8-static": compressed("int-quantized", INT8, STATIC),
    "fp8": config_of("fp8"),
    "int4": config_of("int4"),
    "int4-asymmetric": compressed("pack-quantized", {**INT4, "symmetric": False}, None),
    "nvfp4": compressed("nvfp4-pack-quantized", FP4, FP4),
    "modelopt-nvfp4": NVFP4,
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True},
}


def base(folder: Path, stored: str | None, settings: Any, family: str = "mixtral") -> Checkpoint:
    parts_of = (lambda _: FORMATS[stored](torch.randn(64, 64))) if stored else None
    return Checkpoint.open(write_bare(family, folder, parts_of=parts_of, settings=settings))


def changed(checkpoint: Checkpoint, change: Any) -> Checkpoint:
    """Return the checkpoint after a change of its tensors."""
    file = checkpoint.folder / "model.safetensors"
    tensors: dict[str, Tensor] = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return Checkpoint.open(checkpoint.folder)


def codes(checkpoint: Checkpoint, beside: Any = None) -> list[tuple[str, str]]:
    found = lint_tensors(checkpoint.tensors, checkpoint.layout, checkpoint.config, beside)
    return [(one.code, one.message) for one in found]


KNOWN = [name for name in FORMATS if name != "int8-static"]  # for which vLLM has no kernel


@pytest.mark.parametrize("stored", KNOWN)
def test_what_tools_write_is_what_vllm_expects(stored: str, tmp_path: Path) -> None:
    assert codes(base(tmp_path / "b", stored, SETTINGS[stored])) == []


def test_a_format_without_a_kernel_has_something_left_over(tmp_path: Path) -> None:
    (found,) = codes(base(tmp_path / "b", "int8-static", SETTINGS["int8-static"]))
    assert "have input_scale, input_zero_point, weight_zero_point, which" in found[1]


def beside(name: str, config: Any) -> dict[str, Any] | None:
    """What stands in a file of its own where a release's config.json says nothing, as NVIDIA's."""
    algorithm = name.rpartition("-")[2]
    if settings_of(config) or algorithm not in ("NVFP4", "FP8"):
        return None
    return {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algorithm}}


@pytest.mark.parametrize("name", first_of_each(MODELS))
def test_released_models_are_without_a_finding(name: str) -> None:
    model = Released.read(name, small=True)
    config = model.config(model.experts, model.top_k)
    tensors = {t.name: TensorInfo(t.name, t.dtype, t.shape) for t in model.tensors(model.experts)}
    layout, also = layout_of(config).settled(tensors), beside(name, config)
    assert lint_tensors(tensors, layout, config, also) == []
    if also is not None:  # without which vLLM would take them for unquantised
        (found,) = lint_tensors(tensors, layout, config)
        assert found.code == "left-over-kind"


@pytest.mark.parametrize("stored", KNOWN)
def test_a_kind_that_all_experts_lack_is_said(stored: str, tmp_path: Path) -> None:
    kinds = kinds_of(SETTINGS[stored], EXPERTS, ("w1", "w3", "w2"))
    assert kinds is not None
    whole = base(tmp_path / "b", stored, SETTINGS[stored])
    part = max(kinds.wanted - {"weight"})

    def drop(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(f".{part}")]:
            del tensors[name]

    (found,) = codes(changed(whole, drop))
    assert found[0] == "missing-kind"
    assert found[1] == f"layer 0: experts have no {part}, which vLLM's code for {kinds.name} wants"


def test_a_kind_that_is_left_over_is_said(tmp_path: Path) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(".weight_scale_inv")]:
            tensors[name.replace("weight_scale_inv", "input_scale")] = torch.ones(())

    (found,) = codes(changed(base(tmp_path / "b", "fp8-blocks", FP8), add))
    assert found[0] == "left-over-kind" and "experts have input_scale, which" in found[1]
    (other,) = codes(base(tmp_path / "n", "modelopt-nvfp4", None))
    assert other[0] == "left-over-kind" and "for unquantised experts has no place" in other[1]


@pytest.mark.parametrize(
    ("stored", "settings"),
    [
        ("fp8-blocks", FP8 | {"modules_to_not_convert": [f"{EXPERTS}.5.w1"]}),
        ("modelopt-nvfp4", NVFP4 | {"ignore": ["*block_sparse_moe.experts*"]}),
        ("modelopt-nvfp4", {"quantization": {"quant_algo": "NVFP4", "exclude_modules": [EXPERTS]}}),
        (
            "int8",
            config_of("int8") | {"ignore": [f"{EXPERTS}.0.{one}" for one in ("w1", "w2", "w3")]},
        ),
        ("int4", config_of("int4") | {"ignore": ["re:.*experts.*"]}),
        ("gptq", SETTINGS["gptq"] | {"dynamic": {"-:.*block_sparse_moe.*": {}}}),
        ("awq", SETTINGS["awq"] | {"modules_to_not_convert": ["block_sparse_moe"]}),
    ],
)
def test_settings_that_leave_out_what_is_quantised_are_said(
    stored: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    found = dict(codes(base(tmp_path / "b", stored, settings)))
    assert "that the settings leave out has no place for" in found["left-over-kind"]
    assert codes(base(tmp_path / "plain", None, settings)) == []


def test_experts_that_settings_take_for_quantised_and_are_not(tmp_path: Path) -> None:
    (found,) = codes(base(tmp_path / "b", None, NVFP4))
    assert found[0] == "missing-kind" and "input_scale, weight_scale, weight_scale_2" in found[1]


def test_experts_that_lack_a_tensor_or_are_of_another_kind_are_named(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for expert in (2, 6):
            del tensors[f"{EXPERTS}.{expert}.w1.input_scale"]
        for name in [name for name in tensors if f"{EXPERTS}.4." in name]:
            del tensors[name]
        tensors |= {f"{EXPERTS}.4.{one}.weight": torch.ones(4, 4) for one in ("w1", "w2", "w3")}

    found = dict(codes(changed(base(tmp_path / "b", "modelopt-nvfp4", NVFP4), change)))
    assert found.keys() == {"incomplete-experts", "mixed-experts"}
    assert "layer 0: experts 2, 6 are without tensors" in found["incomplete-experts"]
    assert f"{EXPERTS}.2.w1.input_scale" in found["incomplete-experts"]
    assert "layer 0: expert 4 is not quantised" in found["mixed-experts"]


def test_settings_where_vllm_does_not_look(tmp_path: Path) -> None:
    whole = base(tmp_path / "b", "fp8-blocks", None)
    for section, code in (("thinker_config", "quantisation-place"), ("text_config", None)):
        config = whole.config | {section: {"quantization_config": FP8}}
        found = lint_tensors(whole.tensors, whole.layout, config)
        assert [one.code for one in found if one.code == "quantisation-place"] == [code] * bool(
            code
        )
        assert bool(found) == bool(code)
    assert lint_tensors(whole.tensors, whole.layout, whole.config, FP8) == []


def test_an_order_of_activations_is_said(tmp_path: Path) -> None:
    settings = SETTINGS["gptq"] | {"desc_act": True}
    ((code, _),) = codes(base(tmp_path / "b", "gptq", settings))
    assert code == "activation-order"
    assert codes(base(tmp_path / "c", "gptq", settings | {"group_size": -1})) == []


def test_a_gate_without_its_bias_in_one_layer_is_said() -> None:
    model = Released.read("MiniMaxAI--MiniMax-M2.5", small=True)
    config = model.config(model.experts, model.top_k)
    tensors = {t.name: TensorInfo(t.name, t.dtype, t.shape) for t in model.tensors(model.experts)}
    layout = layout_of(config).settled(tensors)
    gone = next(name for name in tensors if name.endswith("e_score_correction_bias"))
    del tensors[gone]
    (found,) = lint_tensors(tensors, layout, config)
    assert found.code == "missing-row" and found.message.startswith(
        "layer 0: no block_sparse_moe.e_"
    )


def test_a_form_that_vllm_does_not_load_is_said(tmp_path: Path) -> None:
    folder = write_bare("mixtral", tmp_path / "b")
    config = json.loads((folder / "config.json").read_text())
    layer = "model.layers.0.mlp."
    stacked = {layer + "gate.weight": torch.ones(8, 4)}
    stacked |= {
        f"{layer}experts.{one}": torch.ones(8, 4, 4) for one in ("gate_up_proj", "down_proj")
    }
    save_file(stacked, folder / "model.safetensors")
    assert [code for code, _ in codes(Checkpoint.open(folder))] == ["stacked-experts"]
    (folder / "config.json").write_text(
        json.dumps(config | {"model_type": "qwen3_moe", "num_experts": 8})
    )
    assert codes(Checkpoint.open(folder)) == []


def test_matrices_that_vllm_would_turn_the_wrong_way_are_said(tmp_path: Path) -> None:
    """Qwen3-VL: released transposed, saved by transformers 5 as they are multiplied."""
    released = make_family("qwen3_vl_moe", tmp_path / "released")
    assert codes(Checkpoint.open(released)) == []
    saved = tmp_path / "saved"
    load(released).save_pretrained(saved, save_original_format=False)
    assert [code for code, _ in codes(Checkpoint.open(saved))] == ["turned-experts"]
