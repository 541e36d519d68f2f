"""Every tensor of a model is either known or refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from offline.cli.inspect import describe
from tests.families.released.reader import Released, write
from tests.tiny import make_tiny_mixtral
from tests.vllm_moe_prune.bare import MIXTRAL
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.form import Form
from vllm_moe_prune.layouts import LAYOUTS, layout_of
from vllm_moe_prune.rewrite import TensorInfo, expert_counts
from vllm_moe_prune.roles import Role


def test_every_tensor_that_transformers_saves_classifies(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_tiny_mixtral(tmp_path / "base", layers=2, experts=8))
    roles = {name: MIXTRAL.classify(name) for name in checkpoint.tensors}
    assert Counter(role.kind if role else "other" for role in roles.values()) == {
        "expert": 2 * 8 * 3,
        "router": 2,
        "other": 2 * 6 + 3,  # attention and norms of a layer; embedding, last norm, head
    }
    assert not [name for name, role in roles.items() if role is None and "moe" in name]


@pytest.mark.parametrize("projection", ["w1", "w2", "w3"])
def test_names_are_made_and_read_by_the_same_template(projection: str) -> None:
    name = MIXTRAL.expert_name(11, 7, projection)
    assert name == f"model.layers.11.block_sparse_moe.experts.7.{projection}.weight"
    assert MIXTRAL.classify(name) == Role("expert", 11, 7, projection)
    assert MIXTRAL.classify(MIXTRAL.router_name(11)) == Role("router", 11)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.block_sparse_moe.experts.0.w4.weight",
        "model.layers.0.block_sparse_moe.experts.0.w1.weight_scales",
        "model.layers.0.block_sparse_moe.experts.gate_up_proj",
        "model.layers.0.block_sparse_moe.gate.bias",
    ],
)
def test_an_unknown_tensor_of_an_moe_block_is_refused_by_name(name: str) -> None:
    with pytest.raises(PruneError) as caught:
        MIXTRAL.classify(name)
    assert caught.value.message == (
        f"tensor {name} belongs to an MoE block but is not known for mixtral"
    )


def test_dots_in_templates_match_dots_only() -> None:
    assert MIXTRAL.classify("modelXlayers.0.block_sparse_moe.gate.weight") is None


@pytest.mark.parametrize("config", [{"model_type": "llama"}, {}, {"model_type": None}])
def test_an_unknown_architecture_is_refused_with_the_known_ones(config: dict[str, str]) -> None:
    with pytest.raises(PruneError, match=r"^model type .* is not supported") as caught:
        layout_of(config)
    assert caught.value.hint is not None
    assert f"docs/families.md lists the {len(LAYOUTS)}" in caught.value.hint


@pytest.mark.parametrize("value", [None, 0, "8", 2.0])
def test_an_unusable_count_in_the_config_is_one_line(value: object) -> None:
    with pytest.raises(PruneError) as caught:
        MIXTRAL.num_experts({"num_local_experts": value})
    assert caught.value.message == (
        f"config.json has no usable num_local_experts (found {value!r})"
    )


def infos(names: list[str]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, "F32", (4, 4)) for name in names}


def test_experts_are_counted_by_name_and_a_gap_is_refused() -> None:
    names = [MIXTRAL.expert_name(2, expert, "w1") for expert in (0, 1, 2)]
    assert expert_counts(infos(names), MIXTRAL) == {2: 3}
    with pytest.raises(PruneError, match=r"layer 2: experts \[0, 2\] are not numbered 0\.\.E-1"):
        expert_counts(infos([names[0], names[2]]), MIXTRAL)
    with pytest.raises(PruneError, match=r"layer 5: experts \[\] are not numbered 0\.\.E-1"):
        expert_counts(infos([MIXTRAL.router_name(5)]), MIXTRAL)
    with pytest.raises(PruneError, match="no expert tensors of a mixtral model were found"):
        expert_counts(infos(["model.norm.weight"]), MIXTRAL)


def test_what_a_tensor_is_is_asked_of_its_name_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of hundreds of thousands of names that would take most of what `inspect` takes."""
    model = Released.read("deepseek-ai--DeepSeek-V3", small=True)
    tensors = [*model.tensors(model.experts), *model.tensors(model.experts, part="drafts")]
    write(tmp_path / "base", model.config(model.experts, model.top_k), tensors, contents=False)
    asked: Counter[str] = Counter()
    read = Form.of_experts

    def counted(form: Form, layer: int, name: str) -> Role | None:
        asked[f"{layer}.{name}"] += 1
        return read(form, layer, name)

    monkeypatch.setattr(Form, "of_experts", counted)
    assert describe(tmp_path / "base")["experts_per_layer"]
    experts = [n for name, n in asked.items() if ".experts." in name and name[:2] != "61"]
    assert len(experts) > 40  # 61 is a draft layer, with a layout of its own
    assert sum(experts) < 1.2 * len(experts)  # of a layer's first one each form is asked


def test_roles_are_those_of_the_form_that_was_found() -> None:
    """What is remembered of one layout says nothing of another that is made of it."""
    layout, one = LAYOUTS["qwen3_moe"], "model.layers.0.mlp.experts.0.gate_proj.weight"
    before = layout.classify(one)
    assert before is not None and before.kind == "expert"
    stacked = layout.settled(["model.layers.0.mlp.experts.gate_up_proj"])
    with pytest.raises(PruneError, match="is not known"):
        stacked.classify(one)
    assert layout.classify(one) == before == layout.settled([one, one]).classify(one)
