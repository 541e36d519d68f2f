"""Only what is kept must be whole: experts that lack a tensor are named, and may be dropped."""

from __future__ import annotations

import pytest

from tests.vllm_moe_prune.bare import MIXTRAL, infos, layer_fields, map_of
from vllm_moe_prune.completeness import Missing, matrices_of, missing_tensors
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.rewrite import Copy, Drop, TensorInfo, rewrite

NVFP4 = {"weight": "U8", "weight_scale": "F8_E4M3", "weight_scale_2": "F32", "input_scale": "F32"}


def quantised(experts: int = 4, plain: tuple[int, ...] = ()) -> dict[str, TensorInfo]:
    """Two layers whose experts are NVFP4, but for those that are left as they were."""
    found = {name: one for name, one in infos(2, experts).items() if ".experts." not in name}
    for layer in range(2):
        for expert in range(experts):
            parts = {"weight": "BF16"} if expert in plain else NVFP4
            for projection in MIXTRAL.projections:
                for part, dtype in parts.items():
                    name = MIXTRAL.expert_name(layer, expert, projection, part)
                    found[name] = TensorInfo(name, dtype, (2, 2))
    return found


def missing(tensors: dict[str, TensorInfo], experts: int = 4) -> Missing:
    layout = MIXTRAL.settled(tensors)
    return missing_tensors(matrices_of(tensors, layout), layout, dict.fromkeys(range(2), experts))


def kept(*ids: int, experts: int = 4) -> list[object]:
    fields = {"num_experts": experts, "num_kept": len(ids), "top_k": 1, "experts": {"kept": [*ids]}}
    return [layer_fields(layer, **fields) for layer in range(2)]


def test_whole_experts_lack_nothing() -> None:
    assert missing(quantised()) == {}
    assert missing(infos(2, 4)) == {}


def test_what_an_expert_lacks_is_named() -> None:
    tensors = quantised()
    lost = [MIXTRAL.expert_name(1, 2, one, "input_scale") for one in ("w1", "w2")]
    lost.append(MIXTRAL.expert_name(1, 0, "w3", "weight_scale"))
    for name in lost:
        del tensors[name]
    assert missing(tensors) == {1: {0: (lost[2],), 2: (lost[0], lost[1])}}


def test_an_expert_that_was_left_unquantised_is_whole() -> None:
    tensors = quantised(plain=(3,))
    assert missing(tensors) == {}
    gone = MIXTRAL.expert_name(0, 3, "w2")
    del tensors[gone]
    assert missing(tensors)[0].keys() == {3} and gone in missing(tensors)[0][3]


def test_a_projection_or_an_expert_that_is_not_there_is_missing() -> None:
    tensors = infos(2, 4)
    for projection in MIXTRAL.projections:
        del tensors[MIXTRAL.expert_name(0, 3, projection)]
    del tensors[MIXTRAL.expert_name(1, 1, "w2")]
    assert missing(tensors) == {
        0: {3: tuple(MIXTRAL.expert_name(0, 3, one) for one in MIXTRAL.projections)},
        1: {1: (MIXTRAL.expert_name(1, 1, "w2"),)},
    }


def test_such_experts_may_be_dropped_and_not_kept() -> None:
    tensors = quantised()
    lost = MIXTRAL.expert_name(1, 2, "w1", "input_scale")
    del tensors[lost]
    made = list(rewrite(tensors, map_of(*kept(3, 0)), MIXTRAL.settled(tensors)))  # type: ignore[arg-type]
    names = {op.target.name for op in made if isinstance(op, Copy)}
    assert len([name for name in names if ".experts." in name]) == 2 * 2 * 3 * 4
    assert sum(isinstance(op, Drop) for op in made) == 2 * 2 * 3 * 4 - 1
    with pytest.raises(PruneError) as caught:
        list(rewrite(tensors, map_of(*kept(2, 0)), MIXTRAL.settled(tensors)))  # type: ignore[arg-type]
    assert caught.value.message == f"the checkpoint has no tensor {lost}"
    assert "expert 2 of layer 1 would be served" in str(caught.value.hint)


def test_an_unquantised_expert_moves_among_quantised_ones() -> None:
    tensors = quantised(plain=(3,))
    made = list(rewrite(tensors, map_of(*kept(3, 0)), MIXTRAL.settled(tensors)))  # type: ignore[arg-type]
    moved = {op.source: op.target.name for op in made if isinstance(op, Copy)}
    assert moved[MIXTRAL.expert_name(0, 3, "w1")] == MIXTRAL.expert_name(0, 0, "w1")
