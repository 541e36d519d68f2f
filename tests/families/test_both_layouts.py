"""One model with its experts one by one and stacked: the same scores, map and answers, bit by bit.

In bfloat16, and in FP8 with a scale for each block of a matrix, as Qwen3 is released in both.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.dummy_model import write_tokenizer
from offline.build.build import build
from offline.calibration.calibrate import calibrate
from offline.calibration.scores import Scores
from offline.engines.local.transformers import TransformersEngine
from offline.plan.plan import plan
from offline.plan.recipe import PlanRecipe
from tests.calibration.test_walk import domain
from tests.families.models import make_family
from tests.families.quantised import BLOCK, FORMATS, Parts, quantise, tensors_of, write
from tests.vllm_probe import Answer, probe, probe_scores
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.routing_map import RoutingMap

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

TEXT = domain("a", 8, length=32)
PROMPTS = [[1, 5, 9, 20, 33, 7], [1, 40, 41, 42, 50, 51, 52], [1, 30, 3, 17]]
NARROW = {"hidden_size": BLOCK, "moe_intermediate_size": BLOCK, "mlp_only_layers": []}
NOT_QUANTISED = [
    "lm_head",
    *(f"model.layers.{n}.self_attn.{one}_proj" for n in range(3) for one in "qkvo"),
    *(f"model.layers.{n}.mlp.gate" for n in range(3)),
]
FP8 = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "weight_block_size": [BLOCK, BLOCK],
    "modules_to_not_convert": NOT_QUANTISED,
}


@dataclass(frozen=True)
class Both:
    """Folders of the same model."""

    one_by_one: Path
    stacked: Path

    def __iter__(self) -> Any:
        return iter((self.one_by_one, self.stacked))


@pytest.fixture(scope="module", params=["bfloat16", "fp8"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp(request.param)
    made = make_family("qwen3_moe", folder / "float32", **NARROW)
    config = {**Checkpoint.open(made).config, "dtype": "bfloat16"}
    tensors = {name: tensor.bfloat16() for name, tensor in tensors_of(made).items()}
    one_by_one = folder / "bfloat16"
    one_by_one.mkdir()
    write(one_by_one, tensors, config)
    if request.param == "fp8":
        if not torch.cpu._is_amx_tile_supported():
            pytest.skip("vLLM's CPU kernels need AMX")
        one_by_one = quantise(one_by_one, folder / "fp8", FORMATS["fp8-blocks"], FP8)
        config = Checkpoint.open(one_by_one).config
    stacked = folder / "stacked"
    stacked.mkdir()
    write(stacked, stacked_as_transformers_has_them(tensors_of(one_by_one)), config)
    for one in (one_by_one, stacked):
        write_tokenizer(one, 60)
    return Both(one_by_one, stacked)


def stacked_as_transformers_has_them(tensors: Parts) -> Parts:
    """Gate and up of an expert below one another, experts in the first dimension; scales alike."""
    found = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    blocks = {name.partition(".experts.")[0] for name in tensors if ".experts." in name}
    for block in blocks:
        for part in ("weight", "weight_scale_inv"):

            def of(expert: int, one: str, block: str = block, part: str = part) -> Tensor:
                return tensors[f"{block}.experts.{expert}.{one}_proj.{part}"]

            if f"{block}.experts.0.up_proj.{part}" not in tensors:
                continue
            end = part.removeprefix("weight")
            gate_up = [torch.cat([of(expert, "gate"), of(expert, "up")]) for expert in range(8)]
            found[f"{block}.experts.gate_up_proj{end}"] = torch.stack(gate_up)
            down = torch.stack([of(expert, "down") for expert in range(8)])
            found[f"{block}.experts.down_proj{end}"] = down
    return found


def scored(folder: Path) -> Scores:
    return calibrate(TransformersEngine(folder, dtype="bfloat16"), [TEXT])


def assert_equal(found: Any, expected: Any) -> None:
    """Every statistic of two layers, bit by bit."""
    for field in fields(expected):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        assert (ours is None and theirs is None) or np.array_equal(ours, theirs), field.name


def assert_same_scores(found: Scores, expected: Scores) -> None:
    assert found.domains["a"].keys() == expected.domains["a"].keys() == {0, 1, 2}
    for layer, seen in expected.domains["a"].items():
        assert_equal(found.domains["a"][layer], seen)
        assert_equal(found.weights[layer], expected.weights[layer])


def planned(scores: Scores) -> RoutingMap:
    return plan(scores, PlanRecipe(criterion="reap", keep=5)).routing_map


def test_the_forms_are_two(both: Both) -> None:
    one, other = (Checkpoint.open(folder) for folder in both)
    assert one.layout.expert is not None and other.layout.expert is None
    assert one.expert_counts() == other.expert_counts() == dict.fromkeys(range(3), 8)


def test_scores_and_map_of_transformers(both: Both) -> None:
    one, other = (scored(folder) for folder in both)
    assert_same_scores(one, other)
    maps = [planned(scores) for scores in (one, other)]
    assert maps[0].layers == maps[1].layers
    assert any(layer.experts.kept != (0, 1, 2, 3, 4) for layer in maps[0].layers)


def test_scores_and_map_of_vllm(both: Both, tmp_path: Path) -> None:
    one, other = (
        probe_scores(
            folder, {"a": TEXT.token_ids.tolist()}, tmp_path / folder.name, dtype="bfloat16"
        )
        for folder in both
    )
    assert_same_scores(one, other)
    assert planned(one).layers == planned(other).layers


@pytest.mark.parametrize("form", ["plain", "compact"])
def test_answers(both: Both, form: str, tmp_path: Path) -> None:
    """Of what is built by one and the same map, which fits both."""
    answers: list[list[Answer]] = []
    kept = planned(scored(both.one_by_one))
    if form == "compact":  # another count in one layer
        first, *rest = kept.layers
        smaller = first.model_copy(
            update={
                "num_kept": 3,
                "experts": first.experts.model_copy(update={"kept": first.experts.kept[:3]}),
            }
        )
        kept = kept.model_copy(update={"layers": (smaller, *rest)})
    for folder in both:
        base, out = Checkpoint.open(folder), tmp_path / folder.name
        own = kept.model_copy(update={"base": base.fingerprint()})
        assert build(base, own, out).form == form
        load_format = "auto" if form == "plain" else "pruned_moe"
        answers.append(
            probe(
                out,
                PROMPTS,
                steps=8,
                dtype="bfloat16",
                load_format=load_format,
                skip_tokenizer_init=True,
            )
        )
    assert answers[0] == answers[1]
