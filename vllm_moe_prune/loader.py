"""`PrunedMoELoader`: serves plain, compact and map-only pruned models in unmodified vLLM.

* plain: loaded as any checkpoint is; the routing map beside it is only provenance.
* compact: the model is built with each layer's own E', top-k and router, then loaded.
* map-only: as compact, from the *original* checkpoint; the map is applied while tensors stream
  in, and the weights of dropped experts are never read.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from vllm.config import ModelConfig, VllmConfig
from vllm.config.load import LoadConfig
from vllm.logger import init_logger
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.weight_utils import maybe_download_from_modelscope

from vllm_moe_prune.checkpoint import COMPACT_FOLDER, Checkpoint
from vllm_moe_prune.constant_experts import ConstantExperts
from vllm_moe_prune.draft_loader import DraftLoader
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub import HubReference
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.mapped_router import MappedRouter
from vllm_moe_prune.repository import fetch_facts, fetch_weights, is_compact, load_map
from vllm_moe_prune.rewrite import Copy, Drop, Operation, rewrite
from vllm_moe_prune.routing_map import MAP_FILE, RoutingMap
from vllm_moe_prune.vllm_compat.built_by import built_by, check_built_by
from vllm_moe_prune.vllm_compat.config_counts import set_counts
from vllm_moe_prune.vllm_compat.drafts import is_other_draft, is_own_draft
from vllm_moe_prune.vllm_compat.limits import (
    check_lora,
    check_parallel,
    check_routed_experts,
)
from vllm_moe_prune.vllm_compat.lora import experts_without_lora
from vllm_moe_prune.vllm_compat.moe_layers import built_by_layer
from vllm_moe_prune.vllm_compat.version import check_version
from vllm_moe_prune.vllm_compat.weights_by_count import load_by_count, views_by_count

logger = init_logger(f"vllm.{__name__}")

_OUR_KEYS = frozenset({"routing_map", "allow_other_base"})


@dataclass(frozen=True, slots=True)
class MappedCheckpoint:
    """A model to serve: its checkpoint, the operations that load it, and its map."""

    checkpoint: Checkpoint
    operations: tuple[Operation, ...]
    routing_map: RoutingMap


class PrunedMoELoader(DefaultModelLoader):
    """Model loader behind ``--load-format pruned_moe``.

    Own keys of ``--model-loader-extra-config``: ``routing_map`` (folder or hub name of the map to
    apply while loading) and ``allow_other_base`` (load a model that the map was not made for).
    """

    def __init__(self, load_config: LoadConfig) -> None:
        check_version()
        extra = dict(load_config.model_loader_extra_config or {})
        self._options = {key: extra.pop(key) for key in _OUR_KEYS & extra.keys()}
        # The parent knows neither our keys nor our format.
        parents = copy(load_config)
        parents.model_loader_extra_config = extra
        parents.load_format = "safetensors"
        super().__init__(parents)
        self._mapped: MappedCheckpoint | None = None
        self._is_plain = False

    def load_model(
        self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = ""
    ) -> torch.nn.Module:
        """Load the model that is served, its draft layers, or another model that drafts for it.

        The map is the served model's. Of another one only a compact checkpoint is ours to load.
        """
        if is_other_draft(vllm_config, model_config):
            if not is_compact(model_config.model, model_config.revision):
                others = copy(self.load_config)
                others.load_format = "auto"
                loader = get_model_loader(others)
                draft: torch.nn.Module = loader.load_model(vllm_config, model_config, prefix)
                return draft
            self._options = {}
        if is_own_draft(vllm_config, model_config):
            return self._drafts(model_config).load_model(vllm_config, model_config, prefix)
        model: torch.nn.Module = super().load_model(vllm_config, model_config, prefix)
        return model

    def create_model(
        self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = ""
    ) -> torch.nn.Module:
        """Build the model, on a pruned base layer by layer as the map says."""
        self._mapped = self._mapped_checkpoint(model_config)
        self._is_plain = self._mapped is None
        with experts_without_lora(vllm_config):
            if self._mapped is None:
                return super().create_model(vllm_config, model_config, prefix)
            return self._create_pruned(self._mapped, vllm_config, model_config, prefix)

    def _create_pruned(
        self,
        mapped: MappedCheckpoint,
        vllm_config: VllmConfig,
        model_config: ModelConfig,
        prefix: str,
    ) -> torch.nn.Module:
        routing_map = mapped.routing_map
        check_parallel(vllm_config, routing_map)
        check_lora(vllm_config)
        check_routed_experts(vllm_config, routing_map)
        layout, layers = mapped.checkpoint.layout, routing_map.by_layer()
        config = model_config.hf_text_config
        # Whatever asks the config later, after the layers exist, gets the largest count.
        set_counts(config, layout, routing_map.max_kept, routing_map.max_top_k)
        built_by(model_config, routing_map)
        constant = _constants(routing_map)
        with built_by_layer(layout, layers, _routers(routing_map, layout), constant):
            model = super().create_model(vllm_config, model_config, prefix)
        if views_by_count(mapped.checkpoint):
            kept = {number: layer.num_kept for number, layer in layers.items()}
            load_by_count(model, config, layout, kept)
        logger.info("pruned_moe: %s", routing_map.summary())
        return model

    def get_all_weights(
        self, model_config: ModelConfig, model: torch.nn.Module
    ) -> Generator[tuple[str, torch.Tensor], None, None]:
        """Yield the pruned model's weights under the names of the original checkpoint.

        To load weights again into a model, vLLM makes a new loader and begins here.

        :raises PruneError: if these weights belong to another map than the model was built by
        """
        if self._mapped is None and not self._is_plain:
            self._mapped = self._mapped_checkpoint(model_config)
            wanted = None if self._mapped is None else self._mapped.routing_map
            check_built_by(model_config, wanted)
        if self._mapped is None:
            yield from super().get_all_weights(model_config, model)
            return
        self.counter_before_loading_weights = time.perf_counter()  # what vLLM logs counts from it
        for operation in self._mapped.operations:
            tensor = self._mapped.checkpoint.perform(operation)
            if tensor is not None:
                assert not isinstance(operation, Drop)
                yield operation.target.name, tensor

    def _mapped_checkpoint(self, model_config: ModelConfig) -> MappedCheckpoint | None:
        """Return what to load, or None for a plain checkpoint.

        All is checked before the weights of a model on the hub are downloaded.
        """
        map_path = self._options.get("routing_map")
        given = None if map_path is None else load_map(Path(map_path))
        checkpoint = Checkpoint.open(self._folder(model_config))
        mapped = self._planned(checkpoint, given, model_config.model)
        fetch_weights(checkpoint)
        return mapped

    def _planned(
        self, checkpoint: Checkpoint, given: RoutingMap | None, name: str
    ) -> MappedCheckpoint | None:
        folder = checkpoint.folder
        compact, has_map = (folder / COMPACT_FOLDER).is_dir(), (folder / MAP_FILE).exists()
        if given is None:
            if not has_map:
                raise PruneError(
                    f"{name} has no {MAP_FILE}",
                    hint="serve an unpruned model without --load-format pruned_moe, or name a map "
                    'with --model-loader-extra-config \'{"routing_map": "MAP"}\'',
                )
            beside = RoutingMap.load(folder)
            return _as_it_is(checkpoint, beside) if compact else None
        if compact or has_map:
            raise PruneError(
                f"{name} is already pruned; a routing map applies to its base",
                hint="give the base model, or leave routing_map out",
            )
        allow_other = bool(self._options.get("allow_other_base", False))
        return apply_map(checkpoint, given, allow_other=allow_other)

    def _drafts(self, model_config: ModelConfig) -> DraftLoader:
        return DraftLoader(self.load_config, self._folder(model_config))

    def download_model(self, model_config: ModelConfig) -> None:
        """Bring the model onto this machine."""
        fetch_weights(Checkpoint.open(self._folder(model_config)))

    def _folder(self, model_config: ModelConfig) -> Path:
        """Return where the model is; of one on the hub its weights may not be there yet."""
        # vLLM has its own switch for another hub.
        name = maybe_download_from_modelscope(model_config.model, model_config.revision)
        folder = Path(name or model_config.model)
        if folder.is_dir():
            return folder
        cache = self.load_config.download_dir
        reference = HubReference(model_config.model, model_config.revision)
        return fetch_facts(reference, Path(cache) if cache else None)


def refuse_compact(model: str, revision: str | None) -> None:
    """Refuse a compact checkpoint that another load format is about to open.

    :param model: a folder or the hub's ``Org/Name``
    :raises PruneError: saying which flag to add
    """
    if is_compact(model, revision):
        raise PruneError(
            f"{model} is a compact pruned checkpoint and cannot be served as it is",
            hint=f"vllm serve {model} --load-format pruned_moe",
        )


def apply_map(
    checkpoint: Checkpoint, routing_map: RoutingMap, *, allow_other: bool = False
) -> MappedCheckpoint:
    """Plan the loading of an original checkpoint through a routing map.

    :raises PruneError: if the map does not fit the checkpoint
    """
    routing_map.check_base(
        checkpoint.fingerprint(), checkpoint.expert_counts(), allow_other=allow_other
    )
    operations = rewrite(checkpoint.tensors, routing_map, checkpoint.layout)
    return MappedCheckpoint(checkpoint, tuple(operations), routing_map)


def _as_it_is(checkpoint: Checkpoint, routing_map: RoutingMap) -> MappedCheckpoint:
    """Plan the loading of a compact checkpoint, whose tensors are already the pruned ones."""
    found = checkpoint.expert_counts()
    for layer in routing_map.layers:
        count = found.get(layer.layer, 0)
        if count != layer.num_kept:
            raise PruneError(
                f"{checkpoint.folder}: layer {layer.layer} has {count} experts, "
                f"its routing map says {layer.num_kept}",
                hint="the checkpoint and its routing map do not belong together; build it again",
            )
    operations = tuple(Copy(info.name, info) for info in checkpoint.tensors.values())
    return MappedCheckpoint(checkpoint, operations, routing_map)


def _routers(routing_map: RoutingMap, layout: MoeLayout) -> Mapping[int, MappedRouter]:
    """Return the routers of our own: mapped ones, and of whole scores among constant vectors."""
    found = {}
    for layer in routing_map.layers:
        if layer.router == "mapped":
            found[layer.layer] = MappedRouter.of(routing_map, layer, layout.score)
        elif layer.substituted and layout.mappable and routing_map.num_groups == 1:
            every = np.eye(layer.gate_rows, dtype=np.float32)
            found[layer.layer] = MappedRouter(every, layout.score)
    return found


def _constants(routing_map: RoutingMap) -> Mapping[int, ConstantExperts]:
    return {
        layer.layer: ConstantExperts.of(routing_map, layer)
        for layer in routing_map.layers
        if layer.substituted is not None
    }
