"""Router adapters: what each family's router returns, read as data and refused when it differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from offline.engines.local.experts import find_layers
from offline.engines.local.router import ROUTERS, router_of
from tests.calibration.families import make
from tests.families.models import EXPERTS, FAMILIES, make_family
from tests.families.test_build import loaded
from vllm_moe_prune.checkpoint import read_config
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layouts import LAYOUTS, layout_of

TOP_K = {"llama4": 1, "llama4_text": 1}  # others have 2
HIDDEN = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))


def test_only_known_families_have_an_adapter_of_their_own() -> None:
    assert set(ROUTERS) <= set(LAYOUTS)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_what_they_are_called(family: str, tmp_path: Path) -> None:
    """And written as the router returned them."""
    folder = make_family(family, tmp_path)
    layout, top_k = layout_of(read_config(folder)), TOP_K.get(family, 2)
    for control in find_layers(loaded(folder), layout).values():
        output = control.adapter.call(control.block, HIDDEN)
        routed = control.adapter.read(output)
        assert routed.logits.shape == (5, EXPERTS)
        assert routed.ids.shape == routed.weights.shape == (5, top_k)
        assert routed.ids.dtype == torch.int64 and routed.weights.is_floating_point()
        assert all(len(set(row)) == top_k for row in routed.ids.tolist())
        assert float(routed.weights.min()) >= 0
        written = control.adapter.write(routed)
        assert [one is other for one, other in zip(written, output, strict=True)] == [True] * 3


@pytest.mark.parametrize(
    "output", [torch.zeros(3, 4), (torch.zeros(5, 8),), (torch.zeros(2, 2),) * 3]
)
def test_anything_else_is_refused(output: Any) -> None:
    with pytest.raises(PruneError, match="something else than logits, weights, ids"):
        router_of(LAYOUTS["mixtral"]).read(output)


@torch.no_grad()
def test_an_order_or_a_name_that_is_wrong_is_refused() -> None:
    model, layout = make("mixtral")
    granite = LAYOUTS["granitemoe"]
    with pytest.raises(PruneError, match="has no 'router'"):
        find_layers(model, granite)
    router = find_layers(model, layout)[0].router
    output = router(torch.randn(5, 32, dtype=torch.float64))
    with pytest.raises(PruneError, match="something else than ids, weights, logits"):
        router_of(granite).read(output)
