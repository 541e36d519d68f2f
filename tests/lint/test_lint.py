"""The serving lint: what it says, of which layers, and that it is silent where all is well."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.lint.counts import (
    FUSED_TOPK,
    TUNED,
    friendly_counts,
    neighbours,
    spans,
    starts_on_blackwell,
)
from offline.lint.friendly import friendly
from offline.lint.lint import Finding, ModelFacts, Target, lint
from offline.maps.map_space import Space
from tests.maps.landscape import space_of
from tests.sample_shapes import reshaped
from tests.vllm_moe_prune.bare import BASE
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.layouts import LAYOUTS
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap


def map_of(
    *counts: int, experts: int = 64, top_k: int = 2, mapped: bool = False, groups: int = 1
) -> RoutingMap:
    """Keep so many experts in layers 1, 2, ..., equally many of each group."""
    size = experts // groups
    layers = tuple(
        LayerMap(
            layer=number,
            num_experts=experts,
            num_kept=count,
            top_k=top_k,
            experts=Selection(
                kept=tuple(g * size + i for g in range(groups) for i in range(count // groups))
            ),
            router="mapped" if mapped else "sliced",
        )
        for number, count in enumerate(counts, 1)
    )
    return RoutingMap.build(
        model_type="mixtral",
        base=BASE,
        num_groups=groups,
        layers=layers,
        provenance=Provenance(method="by hand"),
    )


def codes(found: list[Finding]) -> list[str]:
    return [finding.code for finding in found]


SAID: list[tuple[RoutingMap, Target, str, str]] = [
    (map_of(48, 32, 48), Target(), "per-layer-counts", "layers differ (keep 32/48, top-2)"),
    (map_of(32, mapped=True), Target(), "mapped-router", "layer 1: the router is mapped"),
    (map_of(32, 48), Target(None, 4), "expert-parallel", "32/48 experts per layer cannot be"),
    (map_of(30), Target(None, 4), "expert-parallel", "30 experts per layer cannot be shared"),
    (map_of(30), Target(), "expert-parallel", "do not divide among 4, 8 expert-parallel ranks"),
    (map_of(48, 48, 32, 48), Target(), "general-top-k", "layers 1-2, 4: on a GPU 48 experts"),
    (map_of(30, 32, 30), Target(), "blackwell", "layers 1, 3: 30 experts (no multiple of 4)"),
    (map_of(4, top_k=4), Target(), "blackwell", "layer 1: 4 experts (all active) are refused"),
    (map_of(576, experts=600), Target(), "blackwell", "576 experts (over 512)"),
    (map_of(48), Target(), "untuned", "no tuned GPU settings for 48 experts"),
    (map_of(2), Target(), "all-active", "layer 1: all 2 kept experts are active"),
]


@pytest.mark.parametrize(
    ("routing_map", "target", "code", "text"), SAID, ids=[f"{s[2]}: {s[3]}" for s in SAID]
)
def test_a_rule_names_the_layers_and_the_number(
    routing_map: RoutingMap, target: Target, code: str, text: str
) -> None:
    found = {finding.code: finding for finding in lint(routing_map, None, target)}
    assert text in found[code].message
    assert found[code].hint and "\n" not in str(found[code])


def test_sliced_routers_are_spoken_of_where_they_are_not_exact() -> None:
    known = ModelFacts(slices=False)
    (found,) = (one for one in lint(map_of(32, 64), known) if one.code == "inexact-router")
    assert found.level == "note" and found.message.startswith("layer 1: the model does not")
    assert "--router mapped" in found.hint
    (grouped,) = (o for o in lint(map_of(32, groups=8), known) if o.code == "inexact-router")
    assert "mapped" not in grouped.hint  # which those cannot be
    for facts in (ModelFacts(), ModelFacts(slices=True)):
        assert "inexact-router" not in codes(lint(map_of(32), facts))
    for exact in (map_of(32, mapped=True), map_of(64)):
        assert "inexact-router" not in codes(lint(exact, known))


def test_a_map_that_serves_well_is_not_spoken_of() -> None:
    facts = ModelFacts(hidden=2048, intermediate=1408, topk_group=1)
    for count, target in ((32, Target()), (32, Target(2, 8)), (64, Target())):
        assert lint(map_of(count, count), facts, target) == []


def test_warnings_come_before_notes() -> None:
    found = lint(map_of(30, 2), None, Target(None, 4))
    levels = [finding.level for finding in found]
    assert levels == sorted(levels, key=lambda level: level != "warning")
    assert {"warning", "note"} == set(levels)


def test_sizes_that_kernels_and_ranks_cannot_split() -> None:
    facts = ModelFacts(hidden=100, intermediate=1408)
    assert codes(lint(map_of(32), facts)) == ["cpu-alignment"]
    found = lint(map_of(32), replace(facts, hidden=128), Target(tensor_parallel=3))
    assert codes(found) == ["tensor-parallel", "cpu-alignment"]
    assert "size 1408 does not divide by 3" in found[0].message
    assert codes(lint(map_of(32), replace(facts, hidden=128), Target(tensor_parallel=2))) == []


def test_a_grouped_router_that_cannot_reach_its_experts() -> None:
    grouped = map_of(16, groups=8, top_k=6)
    found = lint(grouped, ModelFacts(topk_group=2))
    assert codes(found)[0] == "unreachable-top-k"
    assert "top-6 from 2 of 8 router groups needs 24 experts, 16 are kept" in found[0].message
    assert "unreachable-top-k" not in codes(lint(grouped, ModelFacts(topk_group=3)))
    assert "unreachable-top-k" not in codes(lint(grouped))  # nobody knows


GROUPED = {
    **{"hidden_size": 64, "intermediate_size": 256, "moe_intermediate_size": 32},
    **{"n_group": 4, "topk_group": 2},
}
DBRX = {"d_model": 64, "ffn_config": {"ffn_hidden_size": 96}}
LONGCAT = {"hidden_size": 64, "ffn_hidden_size": 256, "expert_ffn_hidden_size": 32}


@pytest.mark.parametrize(
    ("family", "config", "facts"),
    [
        ("mixtral", {"hidden_size": 64, "intermediate_size": 96}, ModelFacts(64, 96, 1, True)),
        ("deepseek_v3", GROUPED, ModelFacts(64, 32, 2, True)),
        ("dbrx", DBRX, ModelFacts(64, 96, 1, True)),
        ("longcat_flash", LONGCAT, ModelFacts(64, 32, 1, True)),
    ],
)
def test_facts_are_read_from_a_config(
    family: str, config: dict[str, Any], facts: ModelFacts
) -> None:
    assert ModelFacts.of(LAYOUTS[family], config) == facts


def vllm_folder() -> Path:
    """Where vLLM's sources are; importing it takes seconds."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("no vLLM here")
    return Path(spec.origin).parent


def test_the_tuned_counts_are_those_that_the_installed_vllm_ships() -> None:
    folder = vllm_folder() / "model_executor/layers/fused_moe/configs"
    found = [re.match(r"E=(\d+),", file.name) for file in folder.glob("E=*.json")]
    assert {int(match[1]) for match in found if match} == TUNED


def test_the_flag_that_a_warning_names_is_one_of_vllms() -> None:
    found = [finding for finding in lint(map_of(30)) if finding.code == "blackwell"]
    assert "--moe-backend triton" in found[0].hint
    folder = vllm_folder()
    assert '"--moe-backend"' in (folder / "engine/arg_utils.py").read_text()
    backends = re.search(
        r"MoEBackend = Literal\[(.*?)\]", (folder / "config/kernel.py").read_text(), re.S
    )
    assert backends and '"triton"' in backends[1]


def test_mapped_routers_go_to_other_kernels() -> None:
    assert "blackwell" not in codes(lint(map_of(30, 2, mapped=True)))


def test_a_layer_that_keeps_all_is_the_bases_own_affair() -> None:
    assert "blackwell" not in codes(lint(map_of(62, 62, experts=62)))


FRIENDLY = [
    ((48, 64), (32, 64)), ((3, 8), (2, 4)), ((60, 60), (32,)), ((64, 64), (64,)), ((1, 8), (1,)),
]  # fmt: skip


@pytest.mark.parametrize(("given", "wanted"), FRIENDLY)
def test_friendly_neighbours(given: tuple[int, int], wanted: tuple[int, ...]) -> None:
    count, most = given
    assert neighbours(count, friendly_counts(1, most)) == wanted


def test_friendly_counts_keep_to_their_bounds() -> None:
    assert friendly_counts(3, 64) == [4, 8, 16, 32, 64]
    assert friendly_counts(8, 256, (3,)) == [192]
    assert friendly_counts(5, 6, (3,)) == []
    assert set(friendly_counts(1, 600)) == FUSED_TOPK


@pytest.mark.parametrize(
    ("keep", "top_k", "wanted"), [(2, 2, 4), (3, 2, 4), (6, 2, 8), (7, 7, 8), (1, 1, 4), (8, 8, 8)]
)
def test_friendly_avoids_what_blackwell_refuses(keep: int, top_k: int, wanted: int) -> None:
    space = space_of(2, 8, keep, top_k=top_k)
    rounded, _ = friendly(space, space.even_counts())
    assert rounded.even_counts() == {0: wanted, 1: wanted}
    warned = "blackwell" in codes(lint(map_of(wanted, experts=8, top_k=top_k)))
    assert warned == (wanted == top_k)


@st.composite
def plans(draw: st.DrawFn) -> tuple[Space, dict[int, int]]:
    """Draw a model of some layers and what each of them keeps, with a budget or without."""
    experts, top_k = draw(st.sampled_from([8, 12, 60, 128])), draw(st.integers(1, 4))
    layers = draw(st.integers(1, 5))
    counts = {n: draw(st.integers(top_k, experts)) for n in range(layers)}
    budget = draw(st.none() | st.integers(sum(counts.values()), experts * layers))
    space = space_of(layers, experts, None, top_k=top_k, budget=budget)
    return (space if budget else replace(space, keep=counts)), counts


@given(plans())
def test_friendly_keeps_its_promises(given: tuple[Space, dict[int, int]]) -> None:
    """The bounds, the budget, neighbours only, and as few different numbers as there can be."""
    space, counts = given
    fit = {n: friendly_counts(space.top_k[n], space.num_experts[n]) for n in counts}
    fine = {n: [c for c in fit[n] if starts_on_blackwell(c, space.top_k[n])] for n in counts}
    ways = []
    for allowed in (fine, fit):
        choices = [neighbours(counts[n], allowed[n] or fit[n]) for n in counts]
        ways = [w for w in product(*choices) if sum(w) <= (space.budget or sum(w))]
        if ways:
            break
    if not ways:
        with pytest.raises(PruneError, match="--friendly: with the nearest friendly counts"):
            friendly(space, counts)
        return
    rounded, changes = friendly(space, counts)
    found = rounded.even_counts()
    assert tuple(found.values()) in ways
    assert len(set(found.values())) == min(len(set(way)) for way in ways)
    assert bool(changes) == (found != counts)
    if space.budget is None:  # nothing stands in the way of the nearest
        best = [w for w in ways if len(set(w)) == len(set(found.values()))]
        away = [sum(abs(a - b) for a, b in zip(w, counts.values(), strict=True)) for w in best]
        assert sum(abs(found[n] - counts[n]) for n in counts) == min(away)


def test_friendly_is_quick_where_nothing_fits_many_layers() -> None:
    counts = {n: 66 + n // 3 * 3 for n in range(60)}
    space = reshaped(replace(space_of(60, 126, None), keep=counts), num_groups=3)
    rounded, changes = friendly(space, counts)
    assert rounded.even_counts() == counts and changes == ()


def test_friendly_rounds_each_layer_and_says_so() -> None:
    space = replace(space_of(4, 64, None, top_k=2), keep={0: 40, 1: 40, 2: 20, 3: 32})
    rounded, changes = friendly(space, space.even_counts())
    assert rounded.even_counts() == {0: 32, 1: 32, 2: 32, 3: 32}
    assert changes == (
        "--friendly: 32 experts instead of 40 in layers 0-1",
        "--friendly: 32 experts instead of 20 in layer 2",
    )
    assert friendly(rounded, rounded.even_counts()) == (rounded, ())


def test_friendly_never_takes_what_must_stay_nor_more_than_the_budget() -> None:
    space = space_of(2, 8, budget=9, top_k=1)
    rounded, _ = friendly(space, {0: 3, 1: 6}, protected={0: (1, 2, 7)})
    assert rounded.even_counts() == {0: 4, 1: 4}
    with pytest.raises(PruneError, match="layers keep 12 experts, more than --budget 9"):
        friendly(space, {0: 3, 1: 6}, protected={0: (1, 2, 7), 1: (0, 1, 2, 3, 4)})


def test_friendly_is_a_multiple_of_groups_and_ranks() -> None:
    space = reshaped(space_of(1, 256, 200), num_groups=8)
    assert friendly(space, {0: 200})[0].keep == {0: 192}
    assert friendly(space, {0: 40}, expert_parallel=64)[0].keep == {0: 64}


def test_layers_are_written_as_people_do() -> None:
    assert spans([3]) == "layer 3"
    assert spans([7, 0, 1, 2, 9, 10]) == "layers 0-2, 7, 9-10"
