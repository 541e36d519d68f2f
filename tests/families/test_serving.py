"""Every family served by vLLM, in all forms, against transformers.

With ``--matrix`` the outcomes are written into docs/families.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offline.build.build import build
from offline.engines.local.experts import find_layers
from tests.families.masking import without
from tests.families.matrix import Matrix
from tests.families.models import EXPERTS, SERVED, load, make_family
from tests.families.serving import serving_of
from tests.reference import greedy
from tests.sample_maps import map_of
from tests.vllm_probe import RANKS, Answer, probe
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.routing_map import RoutingMap

pytestmark = pytest.mark.vllm

PROMPTS = [[1, 5, 9, 20, 33, 7], [1, 40, 41, 42, 50, 51, 52, 53, 54], [1, 30, 3, 17]]
STEPS = 8
UNIFORM = {0: (0, 3, 4, 6), 1: (1, 2, 5, 7), 2: (2, 3, 6, 7)}  # two of each of two groups
DIFFERENT = {0: (0, 3, 4, 6), 1: (0, 1, 2, 4, 5, 7), 2: tuple(range(EXPERTS))}
PARALLEL: dict[str, dict[str, Any]] = {
    "TP1": {},
    "TP2": {"tensor_parallel_size": 2, "env": RANKS},
}
Make = Callable[[str], Checkpoint]


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[str, Checkpoint] = {}

    def base(family: str) -> Checkpoint:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            make_family(family, folder, **serving_of(family).model)
            made[family] = Checkpoint.open(folder)
        return made[family]

    return base


def by_table(base: Checkpoint) -> list[int]:
    """Return the layers of which nothing can go: a table says by token which experts compute."""
    return [
        layer
        for layer in base.expert_counts()
        for table in base.layout.form(layer).tables
        if base.layout.layer.format(layer=layer) + table in base.tensors
    ]


def kept_map(
    base: Checkpoint, kept: dict[int, tuple[int, ...]], *, whole: bool = True
) -> RoutingMap:
    """A map that keeps these, and of layers by a table all, unless told otherwise."""
    if whole:
        kept = kept | dict.fromkeys(by_table(base), tuple(range(EXPERTS)))
    layers = [
        LayerMap(
            layer=layer,
            num_experts=EXPERTS,
            num_kept=len(kept[layer]),
            top_k=base.layout.top_k(base.config),
            experts=Selection(kept=kept[layer]),
        )
        for layer in base.expert_counts()
    ]
    return map_of(base.folder, layers)


def mapped_map(base: Checkpoint) -> RoutingMap:
    """The first layer one-hot with one active expert, the second merged and continuous."""
    rng = np.random.default_rng(0)
    top_k = base.layout.top_k(base.config)
    near = np.eye(EXPERTS, dtype=np.float32)[[1, 2, 5, 6]]
    first, second = list(base.expert_counts())[:2]
    layers = [
        LayerMap(
            layer=first,
            num_experts=EXPERTS,
            num_kept=3,
            top_k=1,
            experts=Selection(kept=(6, 1, 2)),
            router="mapped",
        ),
        LayerMap(
            layer=second,
            num_experts=EXPERTS,
            num_kept=4,
            top_k=top_k,
            experts=Selection(matrix="w_em"),
            router="mapped",
            router_rows=Selection(matrix="w_rm"),
        ),
    ]
    layers += [
        LayerMap(
            layer=layer,
            num_experts=EXPERTS,
            num_kept=EXPERTS,
            top_k=top_k,
            experts=Selection(kept=tuple(range(EXPERTS))),
        )
        for layer in list(base.expert_counts())[2:]
    ]
    noise = [rng.normal(0, 0.1, near.shape).astype(np.float32) for _ in range(2)]
    return map_of(base.folder, layers, w_em=near + noise[0], w_rm=near + noise[1])


def answers_of(base: Checkpoint, routing_map: RoutingMap, dtype: torch.dtype) -> list[Answer]:
    """What transformers says with dropped experts' scores removed, or with the map applied."""
    model = load(base.folder, dtype)
    if all(layer.router == "sliced" for layer in routing_map.layers):
        kept = {layer.layer: layer.experts.kept or () for layer in routing_map.layers}
        with without(model, EXPERTS, kept):
            return [greedy(model, prompt, STEPS) for prompt in PROMPTS]
    for control in find_layers(model, base.layout).values():
        control.apply(routing_map)
    return [greedy(model, prompt, STEPS) for prompt in PROMPTS]


def difference(found: list[Answer], expected: list[Answer], *, same_tokens: bool) -> float:
    """Return the largest difference of a log-probability, up to where the texts part."""
    worst = 0.0
    for (tokens, logprobs), (want_tokens, want_logprobs) in zip(found, expected, strict=True):
        assert not same_tokens or tokens == want_tokens
        for step, (ours, theirs) in enumerate(zip(logprobs, want_logprobs, strict=True)):
            if tokens[:step] == want_tokens[:step]:
                away = (torch.tensor(ours) - torch.tensor(theirs)).abs().max()
                worst = max(worst, float(away))
    return worst


MAPS: dict[str, Callable[[Checkpoint], RoutingMap]] = {
    "plain": lambda base: kept_map(base, UNIFORM),
    "compact": lambda base: kept_map(base, DIFFERENT),
    "mapped": mapped_map,
}


@pytest.mark.parametrize("parallel", ["TP1", pytest.param("TP2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", sorted(MAPS))
@pytest.mark.parametrize("family", SERVED)
def test_served_as_the_reference_says(
    base_of: Make, tmp_path: Path, matrix: Matrix, family: str, form: str, parallel: str
) -> None:
    serving, base = serving_of(family), base_of(family)
    if form == "mapped" and not base.layout.mappable:
        pytest.skip("a router that cannot be mapped: refused when it is built, see test_build")
    refusal = serving.refusal(form)
    if parallel != "TP1" and refusal and form != "plain":
        pytest.skip("refused as with one rank")
    routing_map = MAPS[form](base)
    plan = build(base, routing_map, tmp_path / "out")
    if form == "plain" and by_table(base):
        assert plan.form == "compact"
        said = "says by token which experts compute it, so that none of them can go"
        with pytest.raises(PruneError, match=said):
            build(base, kept_map(base, UNIFORM, whole=False), tmp_path / "other")
        matrix.add(family, form, parallel, f"build: a table {said}")
        return
    assert plan.form == ("plain" if form == "plain" else "compact")
    arguments = {"dtype": "float32", **serving.arguments, **PARALLEL[parallel]}
    load_format = "auto" if form == "plain" else "pruned_moe"

    def ask() -> list[Answer]:
        return probe(
            tmp_path / "out",
            PROMPTS,
            steps=STEPS,
            load_format=load_format,
            skip_tokenizer_init=True,
            **arguments,
        )

    if refusal:
        # What a rank says is not among what its process says.
        with pytest.raises(RuntimeError, match=re.escape(refusal) if parallel == "TP1" else None):
            ask()
        matrix.add(family, form, parallel, f"vLLM: {refusal}")
        return
    exact = arguments["dtype"] == "float32"
    expected = answers_of(base, routing_map, getattr(torch, arguments["dtype"]))
    worst = difference(ask(), expected, same_tokens=exact)
    matrix.add(family, form, parallel, worst)
    assert worst <= serving.limit


@pytest.mark.slow
def test_a_family_with_code_of_its_own_is_not_run(tmp_path: Path, matrix: Matrix) -> None:
    """Neither transformers nor vLLM has Ling's config: the checkpoint brings its code along."""
    family, said = "bailing_moe_v2", "contains custom code which must be executed"
    config = {
        "model_type": family,
        "architectures": ["BailingMoeV2ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_bailing_moe_v2.BailingMoeV2Config"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match=said):
        probe(tmp_path, PROMPTS, skip_tokenizer_init=True)
    for column in ("scores", "plain", "compact", "live", "TP2"):  # before there are any ranks
        matrix.add(family, column, "TP1", f"vLLM: {said} (trust_remote_code)")
