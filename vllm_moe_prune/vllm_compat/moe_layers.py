"""How vLLM builds the MoE layers of a model: with counts and with routing functions of our own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Any

import torch

from vllm_moe_prune.constant_experts import ConstantExperts
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.vllm_compat.choices import ChoosingRouter, choice_of
from vllm_moe_prune.vllm_compat.config_counts import counts_in, put_counts, set_counts
from vllm_moe_prune.vllm_compat.constant_layers import substitute

RoutingFunction = Callable[..., tuple[torch.Tensor, torch.Tensor]]
_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks)\.(\d+)(?:\.|$)")


def _model_code(layout: MoeLayout) -> Any:
    """Return the module in which vLLM has a family's MoE blocks."""
    return _module(layout.vllm_module or layout.model_type)


def _layers_code(layout: MoeLayout) -> Any:
    """Return the module in which a family's decoder layers are made one by one."""
    name = layout.vllm_layers_module
    return _module(name) if name else _model_code(layout)


def _module(name: str) -> Any:
    """Return a module of vLLM's folder of models, or one outside of it by its whole name.

    With a colon and a class of it: the module in which that class is, another one for each kind
    of device.

    :raises PruneError: if this vLLM has none, and runs the family in another way or not at all
    """
    outer, _, chosen = name.partition(":")
    whole = outer if "." in outer else f"vllm.model_executor.models.{outer}"
    try:
        module = import_module(whole)
        return import_module(getattr(module, chosen).__module__) if chosen else module
    except ModuleNotFoundError as error:
        if error.name != whole:
            raise
        raise PruneError(
            f"vLLM has no model code of its own for {name}, whose layers could be built one by one",
            hint="build a plain checkpoint: as many experts in every layer, sliced routers",
        ) from None


@contextmanager
def built_by_layer(
    layout: MoeLayout,
    layers: Mapping[int, LayerMap],
    mapped: Mapping[int, torch.nn.Module],
    constant: Mapping[int, ConstantExperts] | None = None,
) -> Iterator[None]:
    """Within this context vLLM builds each MoE layer with that layer's own counts.

    Model code reads one expert count and one top-k from its config, makes the gate from the first
    and hands both to ``FusedMoEFactory``. So while a layer is being made, the config answers with
    the width of that layer's gate, and for layers whose gate is wider than their experts are many
    (with a mapped router, or with constant vectors), the factory is called with E' and a routing
    function.

    :param mapped: decoder layer -> routing function with the buffers that it reads, for the layers
        whose router is mapped
    :param constant: decoder layer -> vectors that stand for experts
    """
    module, maker = _model_code(layout), _layers_code(layout)
    make_layers, factory = maker.make_layers, module.FusedMoEFactory
    vectors = constant or {}

    def make_layers_each(count: int, layer_fn: Callable[..., Any], prefix: str) -> Any:
        def build(prefix: str) -> Any:
            layer = layers.get(layer_number(prefix))
            if layer is None:
                return layer_fn(prefix=prefix)
            with _configs_of_layer(layout, layer, layer_fn):
                return layer_fn(prefix=prefix)

        return make_layers(count, build, prefix=prefix)

    def factory_each(*given: Any, **named: Any) -> Any:
        arguments = _named(factory, given, named)
        number = layer_number(arguments["prefix"])
        if number in layers:
            _check_taken(arguments, layers[number], layout)
        if number not in mapped and number not in vectors:
            return factory(**arguments)
        router = mapped.get(number) or ChoosingRouter(choice_of(arguments, layout))
        arguments |= _routed(router, arguments)
        arguments["num_experts"] = layers[number].num_kept
        made = factory(**arguments)
        # Where weights are scaled as well, vLLM does not see that the function is a module.
        made.add_module("mapped_router", router)
        if number in vectors:
            made.add_module("constant_experts", vectors[number])
            substitute(made, vectors[number], layer=number)
        return made

    maker.make_layers, module.FusedMoEFactory = make_layers_each, factory_each
    try:
        yield
    finally:
        maker.make_layers, module.FusedMoEFactory = make_layers, factory


@contextmanager
def routed_by(
    layout: MoeLayout, routing: Callable[[Mapping[str, Any]], RoutingFunction]
) -> Iterator[None]:
    """Within this context vLLM builds each MoE layer with a routing function of its own.

    :param routing: makes one from the arguments that the layer is made with
    """
    module = _model_code(layout)
    factory = module.FusedMoEFactory

    def factory_each(*given: Any, **named: Any) -> Any:
        arguments = _named(factory, given, named)
        function = routing(arguments)
        return factory(**{**arguments, **_routed(function, arguments)})

    module.FusedMoEFactory = factory_each
    try:
        yield
    finally:
        module.FusedMoEFactory = factory


def _named(
    factory: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]
) -> dict[str, Any]:
    """Return all arguments by name; some model code gives the first ones in order."""
    return named if not given else dict(signature(factory).bind(*given, **named).arguments)


def _routed(function: RoutingFunction, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``FusedMoEFactory`` that make a layer route by ``function``.

    vLLM's grouped top-k (which DeepSeek-V2 asks for with one group, too) excludes a routing
    function, and only vLLM's own routers scale the weights.
    """
    scale = float(arguments.get("routed_scaling_factor", 1.0))
    if scale != 1.0 and not arguments.get("apply_routed_scale_to_output", False):
        function = _Scaled(function, scale)
    return {"custom_routing_function": function, "use_grouped_topk": False}


@dataclass(frozen=True, slots=True)
class _Scaled:
    """A routing function whose weights are multiplied."""

    function: RoutingFunction
    scale: float

    def __call__(self, *given: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = self.function(*given, **named)
        return weights * self.scale, ids


def unscaled(function: Any) -> Any:
    """Return the routing function that a layer was given, whatever it is multiplied with."""
    return function.function if isinstance(function, _Scaled) else function


@contextmanager
def _configs_of_layer(
    layout: MoeLayout, layer: LayerMap, layer_fn: Callable[..., Any]
) -> Iterator[None]:
    configs = _configs_asked(layer_fn)
    before = [counts_in(config, layout) for config in configs]
    for config in configs:
        set_counts(config, layout, layer.gate_rows, layer.top_k)
    try:
        yield
    finally:
        for config, counts in zip(configs, before, strict=True):
            put_counts(config, counts)


def _configs_asked(layer_fn: Callable[..., Any]) -> list[Any]:
    """Return the configs that making a layer may ask: vLLM copies them for a part of a model.

    That is the one of the model now being built, and those that the maker of layers has in its
    closure: Qwen3-VL's language model has a copy that is never the current one.
    """
    from vllm.config import VllmConfig, get_current_vllm_config

    cells = (cell.cell_contents for cell in getattr(layer_fn, "__closure__", None) or ())
    settings = [get_current_vllm_config(), *(one for one in cells if isinstance(one, VllmConfig))]
    models = [one.model_config for one in settings]
    found = [c for m in models for c in (m.hf_config.get_text_config(), m.hf_text_config)]
    return list({id(config): config for config in found}.values())


def _check_taken(arguments: Mapping[str, Any], layer: LayerMap, layout: MoeLayout) -> None:
    """Refuse to serve a layer that was made with other counts than its map has.

    :raises PruneError: naming the layer
    """
    made = arguments.get("num_experts"), arguments.get("top_k")
    wanted = layer.gate_rows, layer.top_k
    if layout.zero_experts_key is None and made != wanted:
        raise PruneError(
            f"vLLM's code for {layout.model_type} makes layer {layer.layer} with {made[0]} experts "
            f"and top-{made[1]}; its map has {wanted[0]} and top-{wanted[1]}",
            hint="build a plain checkpoint: as many experts in every layer, sliced routers",
        )


def layer_number(prefix: str) -> int:
    """Return the decoder layer index in a module prefix, or -1."""
    found = _LAYER.search(prefix)
    return int(found[1]) if found else -1
