"""Tokens of experts: counted in routers, asked for, and shown; `GET /v1/pruning`."""

from __future__ import annotations

import asyncio
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.sample_maps import mixed_map

pytest.importorskip("vllm", reason="the plugin side needs vLLM")

from vllm_moe_prune import expert_metrics
from vllm_moe_prune.endpoint import PruningEndpoint
from vllm_moe_prune.expert_metrics import ExpertTokens, keep_counting
from vllm_moe_prune.served import Served, ServedLayer
from vllm_moe_prune.vllm_compat.expert_counts import (
    METHOD,
    answer_counts,
    count_experts,
)
from vllm_moe_prune.vllm_compat.first_process import remember
from vllm_moe_prune.vllm_compat.moe_layers import layer_number


class Router:
    capture_fn: Any = None

    def set_capture_fn(self, function: Any) -> None:
        self.capture_fn = function


def layer(experts: int, *, monolithic: bool = False) -> torch.nn.Module:
    module = torch.nn.Module()
    method = SimpleNamespace(is_monolithic=monolithic)
    module.routed_experts = SimpleNamespace(quant_method=method, global_num_experts=experts)
    module.router = Router()
    return module


def model_of(*layers: torch.nn.Module) -> Any:
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList()
    for one in layers:
        block = torch.nn.Module()
        block.mlp = one
        model.layers.append(block)
    return model


def counted(model: Any, runner: str = "generate") -> Any:
    config = SimpleNamespace(
        additional_config={}, device_config=SimpleNamespace(device=torch.device("cpu"))
    )
    count_experts(config, SimpleNamespace(runner_type=runner), model)
    return config


def told(model: Any, *arguments: Any) -> Any:
    from vllm.v1.worker.worker_base import WorkerBase

    answer_counts()
    return getattr(WorkerBase, METHOD)(SimpleNamespace(get_model=lambda: model), *arguments)


def test_every_choice_of_every_token_is_counted_where_routers_choose() -> None:
    model = model_of(layer(4), layer(2, monolithic=True), layer(3))
    config = counted(model)
    assert config.additional_config == {METHOD: True}  # its own compiled code
    first, last = model.layers[0].mlp.router, model.layers[2].mlp.router
    first.capture_fn(torch.tensor([[0, 3], [3, 1]], dtype=torch.int32))
    first.capture_fn(torch.tensor([[3, 0]]))
    last.capture_fn(torch.tensor([[2]], dtype=torch.int32))
    assert told(model, False) == [[0, [2, 1, 0, 3]], [2, [0, 0, 1]]]
    assert told(model) == [[0, [0, 0, 0, 0]], [2, [0, 0, 0]]]  # begun anew
    assert not list(model.state_dict())  # no weight of the model
    assert model.layers[1].mlp.router.capture_fn is None


def test_a_model_that_drafts_is_not_counted() -> None:
    model = model_of(layer(4))
    counted(model, "draft")
    assert told(model) == []


class Engine:
    """An engine of two pipeline stages, each of two ranks, that ends after some answers."""

    def __init__(self, answers: int) -> None:
        self.left, self.asked = answers, []

    @property
    def errored(self) -> bool:
        return self.left == 0

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> Any:
        self.asked.append((method, args))
        self.left -= bool(not args)
        first, second = [[0, [1, 2]]], [[1, [0, 3]]]
        return [first, first, second, second]


def test_counts_of_all_stages_are_shown_to_prometheus(monkeypatch: pytest.MonkeyPatch) -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    monkeypatch.setattr(expert_metrics, "SECONDS", 0.0)
    tokens, engine = ExpertTokens(), Engine(2)
    asyncio.run(keep_counting(engine, tokens))
    assert engine.asked[0] == (METHOD, (False,)) and len(engine.asked) == 3
    registry = CollectorRegistry()
    registry.register(tokens)
    lines = generate_latest(registry).decode().splitlines()
    assert [line for line in lines if line[0] != "#"] == [
        'vllm_moe_expert_tokens_total{expert="0",layer="0"} 1.0',
        'vllm_moe_expert_tokens_total{expert="1",layer="0"} 2.0',
        'vllm_moe_expert_tokens_total{expert="0",layer="1"} 0.0',
        'vllm_moe_expert_tokens_total{expert="1",layer="1"} 3.0',
    ]


def test_the_route_says_what_is_served_and_vllm_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient
    from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

    (found,) = metadata.entry_points(group="vllm.endpoint_plugins", name="pruned_moe")
    endpoint = found.load()()
    assert isinstance(endpoint, PruningEndpoint) and isinstance(endpoint, EndpointPlugin)
    app = FastAPI()
    endpoint.attach_router(app)
    client = TestClient(app)
    asyncio.run(endpoint.init_state(None, app.state, None))  # a server without an engine
    assert client.get("/v1/pruning").json() == {"pruned": False}
    layers = (ServedLayer(1, 4, 8, 2, "sliced", False),)
    served = Served("map-only", "base", "map", "sha256:1", "b", "eep", layers, 800, 400)
    model_config: Any = SimpleNamespace()
    remember(model_config, served)
    asyncio.run(endpoint.init_state(SimpleNamespace(model_config=model_config), app.state, None))
    facts = client.get("/v1/pruning").json()
    assert facts["pruned"] is True and (facts["experts"], facts["experts_of"]) == (4, 8)
    assert facts["layers"] == [
        {"layer": 1, "experts": 4, "of": 8, "top_k": 2, "router": "sliced", "merged": False}
    ]
    assert (facts["digest"], facts["map_from"], facts["form"]) == ("sha256:1", "map", "map-only")
    assert client.post("/v1/pruning").status_code == 405


def test_real_routers_of_every_kind_count_what_they_choose(base: Path, tmp_path: Path) -> None:
    """Of a model that vLLM built by a map: sliced, mapped and merged, with each layer's own k."""
    from tests.engineless import alone, config_of, loaded

    routing_map = mixed_map(base)
    routing_map.save(tmp_path / "map")
    extra = {"routing_map": str(tmp_path / "map"), "expert_metrics": True}
    with alone():
        config = config_of(base, load_format="pruned_moe", model_loader_extra_config=extra)
        model = loaded(config, tmp_path)
        chosen = {}
        for name, module in model.named_modules():
            if not hasattr(module, "routed_experts"):
                continue
            number = layer_number(name)
            layer = routing_map.by_layer()[number]
            torch.manual_seed(number)
            hidden = torch.randn(9, config.model_config.get_hidden_size())
            logits = torch.randn(9, layer.gate_rows)
            found = module.router.select_experts(hidden_states=hidden, router_logits=logits)
            chosen[number] = torch.bincount(found[1].flatten().long(), minlength=layer.num_kept)
        counts = dict(told(model))
    assert counts == {number: ids.tolist() for number, ids in chosen.items()}
    assert [sum(counts[one.layer]) for one in routing_map.layers] == [
        9 * one.top_k for one in routing_map.layers
    ]
