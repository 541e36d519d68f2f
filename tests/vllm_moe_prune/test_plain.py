"""A plain checkpoint costs nothing to serve through the plugin: it is the model that vLLM builds.

Speed itself is measured by `benchmarks.overhead`; noise there is larger than a percent. This is the
argument that does not depend on noise: same modules, same weights, no routing function.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from offline.build.build import build
from tests.sample_maps import map_of
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.layer_map import LayerMap, Selection

pytest.importorskip("vllm", reason="the plugin side needs vLLM")

from vllm.config import set_current_vllm_config

from tests.engineless import alone, config_of, load, loaded

KEPT = (0, 2, 5, 7)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_mixtral(tmp_path_factory.mktemp("base"), layers=2)


@pytest.fixture(autouse=True, scope="module")
def _alone() -> Iterator[None]:
    with alone():
        yield


def built(base: Path, out: Path, router: Literal["sliced", "mapped"]) -> Path:
    layers = [
        LayerMap(
            layer=number,
            num_experts=8,
            num_kept=4,
            top_k=2,
            experts=Selection(kept=KEPT),
            router=router,
        )
        for number in range(2)
    ]
    build(Checkpoint.open(base), map_of(base, layers), out)
    return out


def modules(model: torch.nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules()}


def routers(model: torch.nn.Module) -> list[tuple[type, Any]]:
    """Return the router's type and its routing function, of each MoE layer."""
    found = [m.router for m in model.modules() if hasattr(m, "routed_experts")]
    return [(type(router), router.custom_routing_function) for router in found]


@pytest.mark.vllm
def test_a_plain_checkpoint_is_the_same_model_by_either_format(base: Path, tmp_path: Path) -> None:
    folder = built(base, tmp_path / "plain", "sliced")
    stock, ours = load(folder, tmp_path, "auto", "pruned_moe")
    assert modules(ours) == modules(stock)
    assert routers(ours) == routers(stock)
    assert [function for _, function in routers(ours)] == [None, None]
    weights = ours.state_dict()
    assert weights.keys() == stock.state_dict().keys()
    for name, tensor in stock.state_dict().items():
        assert torch.equal(weights[name], tensor), name


@pytest.mark.vllm
def test_a_mapped_router_is_seen_by_the_same_look(base: Path, tmp_path: Path) -> None:
    """The test above must be able to fail."""
    (ours,) = load(built(base, tmp_path / "compact", "mapped"), tmp_path, "pruned_moe")
    assert None not in [function for _, function in routers(ours)]
    assert len(routers(ours)) == 2


@pytest.mark.vllm
def test_a_map_outlives_sleep_and_reloaded_weights(base: Path, tmp_path: Path) -> None:
    """What vLLM's worker does at sleep level 2, which a CPU has not, and its own reload.

    Recorded computations read the same memory afterwards, so it must be the same tensors.
    """
    inplace = pytest.importorskip("vllm.model_executor.model_loader.reload.inplace")
    folder = built(base, tmp_path / "compact", "mapped")
    config = config_of(folder, load_format="pruned_moe")
    model = loaded(config, tmp_path)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    maps = [name for name in tensors if name.endswith(".w_rm")]
    assert [tensors[name].tolist() for name in maps] == [list(KEPT)] * 2
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    kept = {name: buffer.cpu().clone() for name, buffer in model.named_buffers()}
    for tensor in tensors.values():
        tensor.data.fill_(1)
    for name, buffer in model.named_buffers():
        buffer.data.copy_(kept[name].data)
    with set_current_vllm_config(config):
        inplace.reload_weights(config, model, None, None, True)
    after = dict(model.named_parameters()) | dict(model.named_buffers())
    assert after.keys() == tensors.keys()
    for name, tensor in after.items():
        assert tensor.data_ptr() == tensors[name].data_ptr(), name
        # vLLM 0.32 arranges each expert's weights for its CPU kernel, but not reloaded ones.
        pair = (tensor, before[name])
        same = [t.flatten(1).sort().values for t in pair] if tensor.dim() == 3 else pair
        assert torch.equal(*same), name
