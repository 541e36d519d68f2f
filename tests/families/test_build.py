"""A pruned checkpoint of every family against its base without the dropped experts' scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offline.build.build import build
from offline.engines.local.experts import find_layers
from tests.families.masking import without
from tests.families.models import (
    ALWAYS,
    CHOOSING,
    CONFIGS,
    DENSE,
    EXPERTS,
    FAMILIES,
    load,
    make_family,
)
from tests.sample_maps import map_of
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.layouts import LAYOUTS
from vllm_moe_prune.rewrite import Mix, rewrite
from vllm_moe_prune.routing import scores
from vllm_moe_prune.routing_map import RoutingMap

IDS = torch.arange(3, 51).view(2, 24)
KEPT = {0: (0, 3, 4, 6), 1: (1, 2, 5, 7), 2: (2, 3, 6, 7)}  # two of each of two groups


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp(request.param)
    return Checkpoint.open(make_family(request.param, folder))


def sliced_map(base: Checkpoint, **experts: Any) -> RoutingMap:
    """Keep ``KEPT`` of every layer that has experts; ``experts`` in place of these ids."""
    counts, matrices = base.expert_counts(), experts.pop("matrices", {})
    layers = tuple(
        LayerMap(
            layer=layer,
            num_experts=count,
            num_kept=4,
            top_k=base.layout.top_k(base.config),
            experts=Selection(**(experts or {"kept": KEPT[layer]})),
            router_rows=Selection(kept=KEPT[layer]) if experts else None,
        )
        for layer, count in counts.items()
    )
    return map_of(base.folder, layers, **matrices)


loaded = load


def seen_by_gates(base: Checkpoint, hidden: torch.Tensor) -> Callable[[int], torch.Tensor]:
    """What the gates are given for a block's input [T, D]: that, but of Gemma 4."""

    def given(layer: int) -> torch.Tensor:
        name = base.layout.router_name(layer).replace("proj.weight", "scale")
        if not name.endswith("scale"):
            return hidden
        length = (hidden.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return hidden / length * base.tensor(name) * hidden.shape[1] ** -0.5

    return given


def test_there_is_a_tiny_model_of_every_family_that_transformers_has() -> None:
    """As a language model by itself; the others are built as they are released only."""
    from transformers import AutoModelForCausalLM

    known = {config.model_type for config in AutoModelForCausalLM._model_mapping}
    odd = {"longcat_flash", "deepseek_v4", "dbrx"}
    assert set(LAYOUTS) & known - set(CONFIGS) == odd & known
    assert set(CONFIGS) <= set(LAYOUTS) and set(ALWAYS) <= set(CONFIGS)


def test_every_layer_with_experts_is_found(base: Checkpoint) -> None:
    layers = {0, 1, 2} - set(DENSE.get(base.layout.model_type, ()))
    assert base.expert_counts() == dict.fromkeys(sorted(layers), EXPERTS)
    roles = [base.layout.classify(name) for name in base.tensors]
    routers = sum(role is not None and role.kind == "router" for role in roles)
    assert routers == len(layers) * (1 + len(base.layout.router_rows))


@torch.no_grad()
def test_pruned_is_the_base_without_the_dropped_experts_scores(
    base: Checkpoint, tmp_path: Path
) -> None:
    routing_map = sliced_map(base)
    plan = build(base, routing_map, tmp_path / "out")
    assert plan.form == "plain"
    model = loaded(base.folder)
    whole = model(IDS).logits
    kept = {layer: KEPT[layer] for layer in base.expert_counts()}
    with without(model, EXPERTS, kept):
        expected = model(IDS).logits
    found = loaded(tmp_path / "out")(IDS).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)
    assert (found - whole).abs().max() > 0.05
    written = Checkpoint.open(tmp_path / "out")
    assert written.expert_counts() == dict.fromkeys(base.expert_counts(), 4)
    assert written.layout.num_experts(written.config) == 4


@torch.no_grad()
def test_merged_experts_are_the_weighted_sums(base: Checkpoint, tmp_path: Path) -> None:
    w_em = np.random.default_rng(0).normal(size=(4, EXPERTS)).astype(np.float32)
    routing_map = sliced_map(base, matrix="w", matrices={"w": w_em})
    build(base, routing_map, tmp_path / "out")
    before, after = loaded(base.folder).state_dict(), loaded(tmp_path / "out").state_dict()
    experts = [name for name in before if ".experts." in name and "shared" not in name]
    assert len(experts) >= 2 * len(base.expert_counts())
    for name in experts:
        expected = torch.einsum("je,e...->j...", torch.from_numpy(w_em), before[name])
        torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-5)
    untouched = [n for n in before if "attn" in n or "shared" in n or "embed" in n]
    assert untouched
    assert all(torch.equal(before[name], after[name]) for name in untouched)


@torch.no_grad()
def test_the_scores_are_those_of_the_gate(base: Checkpoint) -> None:
    """Whatever else a router returns, and in whatever order."""
    hidden = torch.randn(5, 64)
    given = seen_by_gates(base, hidden)
    for number, control in find_layers(loaded(base.folder), base.layout).items():
        logits = given(number) @ base.tensor(base.layout.router_name(number)).T
        for rows in base.layout.router_rows:
            if rows.endswith("bias") and not any(one in rows for one in CHOOSING):
                logits = logits + base.tensor(rows.format(layer=number))
        expected = scores(logits, base.layout.score)
        torch.testing.assert_close(control.scores_of(hidden), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("router", ["sliced", "mapped"])
def test_an_engine_routes_by_the_map_as_the_checkpoint_does(
    base: Checkpoint, tmp_path: Path, router: str
) -> None:
    routing_map = sliced_map(base)
    build(base, routing_map, tmp_path / "out")
    expected = loaded(tmp_path / "out")(IDS).logits
    layers = tuple(one.model_copy(update={"router": router}) for one in routing_map.layers)
    model = loaded(base.folder)
    whole = model(IDS).logits
    controls = find_layers(model, base.layout)
    assert sorted(controls) == sorted(base.expert_counts())
    sparse = model(IDS).logits  # Llama-4's blocks add up in another order now
    assert torch.equal(sparse, whole) or base.layout.weights_on_input
    torch.testing.assert_close(sparse, whole, rtol=0, atol=5e-5)
    given = routing_map.model_copy(update={"layers": layers})
    if not base.layout.mappable and not (base.layout.is_corrected and router == "sliced"):
        with pytest.raises(PruneError, match=r"cannot try routing maps|can only lose experts"):
            controls[2].apply(given)
        return
    for control in controls.values():
        control.apply(given)
    found = model(IDS).logits
    if router == "sliced" or base.layout.slices:
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)
    else:  # what is left out is the missing probability
        assert (found - expected).abs().max() > 1e-3
    for control in controls.values():
        control.apply(None)
    assert torch.equal(model(IDS).logits, sparse)


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen2_moe", "olmoe", "deepseek_v2"])
def test_sliced_and_mapped_differ_by_the_missing_mass(family: str, tmp_path: Path) -> None:
    """Without renormalising, slicing divides what mapping weighs by the kept probability."""
    base = Checkpoint.open(make_family(family, tmp_path / "base"))
    assert not base.layout.renormalise
    routing_map = sliced_map(base)
    layers = tuple(one.model_copy(update={"router": "mapped"}) for one in routing_map.layers)
    mapped = routing_map.model_copy(update={"layers": layers})
    hidden = torch.randn(7, 64, generator=torch.Generator().manual_seed(0))
    for number, control in find_layers(loaded(base.folder), base.layout).items():
        mass = control.scores_of(hidden)[:, list(KEPT[number])].sum(dim=-1, keepdim=True)
        assert float(mass.max()) < 1
        control.apply(routing_map)
        _, sliced_weights, sliced_ids = control.router(hidden)
        control.apply(mapped)
        _, mapped_weights, mapped_ids = control.router(hidden)
        assert torch.equal(sliced_ids, mapped_ids)
        torch.testing.assert_close(sliced_weights * mass, mapped_weights, rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_an_engine_merges_as_the_checkpoint_does(base: Checkpoint, tmp_path: Path) -> None:
    if not base.layout.mappable:
        pytest.skip("the engine refuses these, see above")
    w_em = np.random.default_rng(1).uniform(size=(4, EXPERTS)).astype(np.float32) / 4
    routing_map = sliced_map(base, matrix="w", matrices={"w": w_em})
    build(base, routing_map, tmp_path / "out")
    model = loaded(base.folder)
    for control in find_layers(model, base.layout).values():
        control.apply(routing_map)
    expected = loaded(tmp_path / "out")(IDS).logits
    torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=5e-5)


def test_a_router_that_cannot_be_mapped_is_refused(base: Checkpoint, tmp_path: Path) -> None:
    routing_map = sliced_map(base)
    layers = tuple(layer.model_copy(update={"router": "mapped"}) for layer in routing_map.layers)
    mapped = routing_map.model_copy(update={"layers": layers})
    if base.layout.mappable:
        assert build(base, mapped, tmp_path / "out").form == "compact"
        return
    with pytest.raises(PruneError, match="cannot be mapped"):
        build(base, mapped, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_names_in_a_block_are_refused(base: Checkpoint) -> None:
    layer = max(base.expert_counts())
    block = base.layout.layer.format(layer=layer) + base.layout.form(layer).blocks[0]
    for name in ("experts.0.w9.weight", "surprise.weight"):
        with pytest.raises(PruneError, match=r"is not known for"):
            base.layout.classify(block + name)


def test_stacked_experts_are_mixed_one_at_a_time(tmp_path: Path) -> None:
    base = Checkpoint.open(make_family("granitemoe", tmp_path / "base"))
    w_em = np.eye(EXPERTS, dtype=np.float32)[[1, 2, 5, 7]]
    w_em[0, 2] = 0.5
    routing_map = sliced_map(base, matrix="w", matrices={"w": w_em})
    mixes = [op for op in rewrite(base.tensors, routing_map, base.layout) if isinstance(op, Mix)]
    assert len(mixes) == 2 * 3
    for mix in mixes:
        source, made = base.tensor(mix.source), base.perform(mix)
        assert made is not None
        torch.testing.assert_close(made[0], source[1] + 0.5 * source[2])
        assert torch.equal(made[3], source[7])
