"""What a checkpoint of any family looks like: guessed from names and shapes alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from offline.cli.main import cli
from offline.lint.explain import Group, experts_per_layer, groups_of, proposed, recognised
from tests.families.released.reader import MODELS, Named, Released, first_of_each, write
from vllm_moe_prune.form import Form
from vllm_moe_prune.layouts import layout_of
from vllm_moe_prune.rewrite import TensorInfo

# In which gate and experts have no telling names, or something else has their shapes as well.
ODD = {
    "databricks--dbrx-instruct",
    "meituan-longcat--LongCat-Flash-Chat",
    "nvidia--Step-3.7-Flash-NVFP4",
}


def tensors_of(model: Released) -> dict[str, TensorInfo]:
    return {t.name: TensorInfo(t.name, t.dtype, t.shape) for t in model.tensors(model.experts)}


def groups(name: str) -> tuple[Released, dict[str, Group]]:
    model = Released.read(name, small=True)
    return model, groups_of(tensors_of(model))


@pytest.mark.parametrize("name", first_of_each(name for name in MODELS if name not in ODD))
def test_the_guess_is_what_the_layout_knows(name: str) -> None:
    """As if no layout were there; patterns of a release say the same."""
    model, found = groups(name)
    layout = layout_of(model.config(model.experts, model.top_k)).settled(tensors_of(model))
    known = groups_of(tensors_of(model), layout)
    for pattern, group in found.items():
        role = known[pattern].role
        looks = {"expert": "expert", "experts, stacked": "stacked", "gate": "router"}
        looks |= {"row per expert": "router"}
        if (role == "router" and "tid2eid" in pattern) or len(group.shape) < 1:
            continue
        if not pattern.startswith("talker."):  # a language model of its own, which is left alone
            assert looks.get(group.guess, "") == role or group.shape[0] < model.experts, pattern
    layers = set(model.numbers(model.fields["experts_in"]))
    assert layers <= experts_per_layer(found.values()).keys()


@pytest.mark.parametrize("name", ["tencent--Hy3", "google--gemma-4-26B-A4B", "Qwen--Qwen3-30B-A3B"])
def test_what_is_proposed_reads_the_model(name: str) -> None:
    """The printed form, taken as it is, knows all tensors of the family's blocks."""
    model, found = groups(name)
    told = proposed(found.values())
    assert told is not None
    first, _, code = told.partition("\n")
    form: Any = eval(code, {"Form": Form})
    layout = layout_of(model.config(model.experts, model.top_k)).settled(tensors_of(model))
    assert first == f"layer={layout.layer!r}"
    usual = layout.form()
    assert (form.router, form.expert, form.projections) == (
        usual.router,
        usual.expert,
        usual.projections,
    )
    assert (form.stacked, form.rows) == (usual.stacked, usual.rows)
    for tensor in model.tensors(model.experts):
        layer, rest = layout.place(tensor.name)
        if rest.startswith(usual.blocks):
            left = form.role(layer, rest, tensor.name) is None
            assert left == (layout.classify(tensor.name) is None)
            assert not left or rest.startswith(form.beside)


def test_nothing_is_proposed_without_experts() -> None:
    info = TensorInfo("model.layers.0.mlp.gate_proj.weight", "F32", (4, 4))
    assert proposed(groups_of({info.name: info}).values()) is None


@pytest.mark.parametrize("family", ["new_moe", "hy_v3"])
def test_on_the_command_line(family: str, tmp_path: Path) -> None:
    model = Released.read("tencent--Hy3", small=True)
    config = model.config(model.experts, model.top_k) | {"model_type": family}
    write(tmp_path / "m", config, list(model.tensors(model.experts)), contents=True)
    words = ["inspect", str(tmp_path / "m"), "--explain"]
    text = CliRunner().invoke(cli, words, env={"COLUMNS": "200"}, catch_exceptions=False).output
    lines = [line for line in text.splitlines() if line.count("mlp.expert_bias ") and "│" in line]
    assert len(lines) == 1 and "row per expert" in lines[0] and "layer 0" not in lines[0]
    assert ("not supported" in text and "rows=('mlp.expert_bias',)" in text) == (
        family == "new_moe"
    )
    assert ("is taken for" in text and "router" in lines[0]) == (family == "hy_v3")
    facts = json.loads(CliRunner().invoke(cli, [*words, "--json"]).output)
    assert facts["experts_per_layer"] == {"1": 8, "79": 8}
    (bias,) = [one for one in facts["tensors"] if one["pattern"].endswith("expert_bias")]
    assert (bias["guess"], bias["layers"], bias["experts"]) == ("row per expert", [1, 79], 0)


def lines_of(*names: tuple[str, tuple[int, ...]], config: Any = None) -> str:
    tensors = {name: TensorInfo(name, "F32", shape) for name, shape in names}
    return "\n".join(recognised(groups_of(tensors).values(), config or {}))


def test_what_is_not_recognised_is_said_as_well() -> None:
    layer = "model.layers.0.moe."
    experts = [(f"{layer}experts.{n}.up.weight", (4, 2)) for n in range(8)]
    text = lines_of(*experts, (layer + "chooser.weight", (8, 2)), config={"n": 8, "moe_top_k": 2})
    assert "expert: model.layers.{layer}.moe.experts.{expert}.up.weight [4, 2]" in text
    assert (
        "no gate was recognised: no matrix with `gate` or `router` in its name has 8 rows" in text
    )
    assert "taken for no part of experts: model.layers.{layer}.moe.chooser.weight [8, 2]" in text
    assert "number of experts in config.json: n = 8" in text
    assert "active experts in config.json: moe_top_k = 2" in text
    dense = lines_of(("model.layers.0.mlp.up.weight", (4, 2)))
    assert "no experts were recognised" in dense and "gate" not in dense


def test_a_family_whose_layout_refuses_the_files_is_explained_too(tmp_path: Path) -> None:
    """Experts in two forms in one layer, and a tensor that the family does not know."""
    model = Released.read("Qwen--Qwen3-30B-A3B", small=True)
    tensors = list(model.tensors(model.experts))
    odd = Named("model.layers.0.mlp.chooser.weight", "", None, "BF16", (4,))
    config = model.config(model.experts, model.top_k)
    write(tmp_path / "odd", config, [*tensors, odd], contents=True)
    words = ["inspect", "--explain"]
    result = CliRunner().invoke(cli, [*words, str(tmp_path / "odd")], env={"COLUMNS": "200"})
    assert "not known for qwen3_moe: model.layers.{layer}.mlp.chooser.weight" in result.stdout
    both = Named("model.layers.0.mlp.experts.gate_up_proj", "", None, "BF16", (8, 4, 4))
    write(tmp_path / "two", config, [*tensors, both], contents=True)
    result = CliRunner().invoke(cli, [*words, str(tmp_path / "two")], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "layer 0 has experts in two forms" in result.stderr
    assert "an entry for it would begin with" in result.stdout
