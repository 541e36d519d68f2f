"""All that touches vLLM internals which move between its minor versions.

Tested with the versions in ``SUPPORTED``; another one is refused rather than tried, because a
routing detail that moved would not fail, it would answer wrongly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.live import LiveExperts, LiveLayer, LiveRouting

SUPPORTED = ((0, 30), (0, 32))  # lowest and highest minor version, both inclusive

RoutingFunction = Callable[..., tuple[torch.Tensor, torch.Tensor]]
_ATTENTION = {"q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj"}
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)(?:\.|$)")


def check_version() -> None:
    """Refuse a vLLM outside the supported window.

    :raises PruneError: naming the installed version and the window
    """
    from vllm.version import __version__ as installed  # type: ignore[attr-defined]

    numbers = tuple(int(part) for part in re.findall(r"\d+", installed)[:2])
    lowest, highest = SUPPORTED
    if not lowest <= numbers <= highest:
        raise PruneError(
            f"vLLM {installed} is not supported by the pruned_moe load format",
            hint=f"install vLLM {_dotted(lowest)}.x to {_dotted(highest)}.x",
        )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


def _model_code(layout: MoeLayout) -> Any:
    """Return the module in which vLLM has a family's MoE blocks."""
    name = layout.vllm_module or layout.model_type
    return import_module(f"vllm.model_executor.models.{name}")


def _layers_code(layout: MoeLayout) -> Any:
    """Return the module in which a family's decoder layers are made one by one."""
    name = layout.vllm_layers_module
    return import_module(f"vllm.model_executor.models.{name}") if name else _model_code(layout)


@contextmanager
def built_by_layer(
    layout: MoeLayout, layers: Mapping[int, LayerMap], mapped: Mapping[int, RoutingFunction]
) -> Iterator[None]:
    """Within this context vLLM builds each MoE layer with that layer's own counts.

    Model code reads one expert count and one top-k from its config, makes the gate from the first
    and hands both to ``FusedMoEFactory``. So while a layer is being made, the config answers with
    the width of that layer's gate, and for layers with a mapped router, whose gate is wider than
    their experts are many, the factory is called with E' and the routing function.

    :param mapped: decoder layer -> routing function, for the layers whose router is mapped
    """
    module, maker = _model_code(layout), _layers_code(layout)
    make_layers, factory = maker.make_layers, module.FusedMoEFactory

    def make_layers_each(count: int, layer_fn: Callable[..., Any], prefix: str) -> Any:
        def build(prefix: str) -> Any:
            layer = layers.get(_layer_number(prefix))
            if layer is None:
                return layer_fn(prefix=prefix)
            with _answering(layout, layer):
                return layer_fn(prefix=prefix)

        return make_layers(count, build, prefix=prefix)

    def factory_each(**arguments: Any) -> Any:
        number = _layer_number(arguments["prefix"])
        if number in mapped:
            arguments |= _custom(mapped[number], arguments)
            arguments["num_experts"] = layers[number].num_kept
        return factory(**arguments)

    maker.make_layers, module.FusedMoEFactory = make_layers_each, factory_each
    try:
        yield
    finally:
        maker.make_layers, module.FusedMoEFactory = make_layers, factory


@contextmanager
def routed_by(layout: MoeLayout, routing: Callable[[int, int], RoutingFunction]) -> Iterator[None]:
    """Within this context vLLM builds each MoE layer with a routing function of its own.

    :param routing: makes one from the layer's number of experts and its top-k
    """
    module = _model_code(layout)
    factory = module.FusedMoEFactory

    def factory_each(**arguments: Any) -> Any:
        function = routing(arguments["num_experts"], arguments["top_k"])
        return factory(**{**arguments, **_custom(function, arguments)})

    module.FusedMoEFactory = factory_each
    try:
        yield
    finally:
        module.FusedMoEFactory = factory


def _custom(function: RoutingFunction, arguments: Mapping[str, Any]) -> dict[str, Any]:
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


@contextmanager
def _answering(layout: MoeLayout, layer: LayerMap) -> Iterator[None]:
    from vllm.config import get_current_vllm_config

    # Of the model now being built: vLLM copies the config for one that is part of another.
    config = get_current_vllm_config().model_config.hf_config.get_text_config()
    keys = (layout.num_experts_key, layout.top_k_key)
    before = [getattr(config, key) for key in keys]
    for key, value in zip(keys, (layer.gate_rows, layer.top_k), strict=True):
        setattr(config, key, value)
    try:
        yield
    finally:
        for key, value in zip(keys, before, strict=True):
            setattr(config, key, value)


def _layer_number(prefix: str) -> int:
    """Return the decoder layer index in a module prefix, or -1."""
    found = _LAYER.search(prefix)
    return int(found[1]) if found else -1


def adapts_experts(vllm_config: Any) -> bool:
    """Whether LoRA may reach experts or gates, by the modules that it is restricted to."""
    lora = vllm_config.lora_config
    if lora is None:
        return False
    names = {target.rpartition(".")[2] for target in lora.target_modules or ()}
    return not names or not names <= _ATTENTION


@contextmanager
def experts_without_lora(vllm_config: Any) -> Iterator[None]:
    """Within this context a model is built whose experts no adapter will touch.

    With LoRA vLLM takes expert kernels that can adapt, also where adapters are for attention only.
    Its CPU build has no such kernel and would fail with the first token. Attention itself is
    prepared for adapters after the model is loaded.
    """
    lora = vllm_config.lora_config
    if not adapts_experts(vllm_config):
        vllm_config.lora_config = None
    try:
        yield
    finally:
        vllm_config.lora_config = lora


def guard_other_loaders(refuse: Callable[[str], None], *, ours: str) -> None:
    """Let every other load format call ``refuse(model folder)`` before it loads anything."""
    from vllm.model_executor import model_loader

    registry: dict[str, type] = model_loader._LOAD_FORMAT_TO_MODEL_LOADER
    for load_format, loader in list(registry.items()):
        if load_format != ours and not getattr(loader, "guards_compact", False):
            registry[load_format] = _guarded(loader, refuse)


def _guarded(loader: Any, refuse: Callable[[str], None]) -> type:
    class Guarded(loader):  # type: ignore[misc]
        guards_compact = True

        def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
            refuse(model_config.model)
            return super().load_model(vllm_config, model_config, prefix)

    Guarded.__name__ = Guarded.__qualname__ = loader.__name__
    return Guarded


# `observe_steps` reads the first of vLLM's two model runners.
LIVE_ENVIRONMENT = {"VLLM_USE_V2_MODEL_RUNNER": "0"}


def live_layers(model: torch.nn.Module) -> dict[int, LiveLayer]:
    """Return decoder layer -> its switchable parts, for a model of `LiveMoELoader`."""
    found = {}
    for name, module in model.named_modules():
        experts = getattr(module, "routed_experts", None)
        routing = getattr(getattr(module, "router", None), "custom_routing_function", None)
        routing = routing.function if isinstance(routing, _Scaled) else routing
        if experts is not None and isinstance(routing, LiveRouting):
            found[_layer_number(name)] = LiveLayer(routing, LiveExperts(experts))
    return found


def is_quantised(experts: Any) -> bool:
    """Whether the experts of a layer are stored in a form that cannot be added up."""
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
        UnquantizedFusedMoEMethod,
    )

    return not isinstance(experts.quant_method, UnquantizedFusedMoEMethod)


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Those rows of a step's hidden states that belong to the prompt of one request.

    Row ``offset + i`` is prompt position ``start + i``, for i below ``count``.
    """

    note: Any  # what the request's `SamplingParams.extra_args` say under NOTE
    start: int
    count: int
    offset: int
    prompt_length: int


def block_size(llm: Any) -> int:
    """Return how many tokens one block of an engine's prefix cache holds."""
    return int(llm.llm_engine.vllm_config.cache_config.block_size)


NOTE = "moe_note"


def observe_steps(
    model_runner: Any, observe: Callable[[list[PromptRows], torch.Tensor], None]
) -> None:
    """Call ``observe`` after each forward pass with the noted prompts and hidden states [T, D].

    T counts real tokens only. vLLM asks for the log-probabilities of prompts at just this place:
    hidden states are final, the batch is still that of the step, logits may be computed.
    """
    original = model_runner._get_prompt_logprobs_dict

    def observed(hidden: torch.Tensor, scheduled: dict[str, int]) -> Any:
        rows = [r for r in (_rows(model_runner, *item) for item in scheduled.items()) if r]
        if rows:
            observe(rows, hidden)
        return original(hidden, scheduled)

    model_runner._get_prompt_logprobs_dict = observed


def _rows(model_runner: Any, request_id: str, scheduled: int) -> PromptRows | None:
    request = model_runner.requests[request_id]
    extra = request.sampling_params.extra_args if request.sampling_params else None
    note = (extra or {}).get(NOTE)
    length = len(request.prompt_token_ids or ())
    start = request.num_computed_tokens
    count = min(scheduled, length - start)
    if note is None or count <= 0:
        return None
    index = model_runner.input_batch.req_id_to_index[request_id]
    offset = int(model_runner.query_start_loc.np[index])
    return PromptRows(note, start, count, offset, length)


def shut_down(llm: Any) -> None:
    """End the processes of a `vllm.LLM`."""
    llm.llm_engine.engine_core.shutdown()
