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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm.config import ModelConfig, VllmConfig
from vllm.config.load import LoadConfig
from vllm.logger import init_logger
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.weight_utils import maybe_download_from_modelscope

from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.constant_experts import ConstantExperts
from vllm_moe_prune.draft_loader import DraftLoader
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub import HubReference
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.mapped_checkpoint import (
    METRICS,
    OUR_KEYS,
    MappedCheckpoint,
    mapped_checkpoint,
    misspelt,
    options_of,
)
from vllm_moe_prune.mapped_router import MappedRouter
from vllm_moe_prune.repository import fetch_facts, fetch_weights, is_compact
from vllm_moe_prune.rewrite import Drop
from vllm_moe_prune.routing_map import RoutingMap
from vllm_moe_prune.vllm_compat.built_by import built_by, check_built_by
from vllm_moe_prune.vllm_compat.config_counts import set_counts
from vllm_moe_prune.vllm_compat.drafts import is_other_draft, is_own_draft
from vllm_moe_prune.vllm_compat.expert_counts import count_experts
from vllm_moe_prune.vllm_compat.limits import check_pruned
from vllm_moe_prune.vllm_compat.lora import experts_without_lora
from vllm_moe_prune.vllm_compat.moe_layers import built_by_layer
from vllm_moe_prune.vllm_compat.version import check_version
from vllm_moe_prune.vllm_compat.weights_by_count import askers_by_count, load_by_count

logger = init_logger(f"vllm.{__name__}")


class PrunedMoELoader(DefaultModelLoader):
    """Model loader behind ``--load-format pruned_moe``.

    Own keys of ``--model-loader-extra-config``: ``routing_map`` (folder or hub name of the map to
    apply while loading), ``allow_other_base`` (load a model that the map was not made for) and
    ``expert_metrics`` (count the tokens of every expert).
    """

    def __init__(self, load_config: LoadConfig) -> None:
        check_version()
        self._options, extra = options_of(dict(load_config.model_loader_extra_config or {}))
        # The parent knows neither our keys nor our format.
        parents = copy(load_config)
        parents.model_loader_extra_config = extra
        parents.load_format = "safetensors"
        try:
            super().__init__(parents)
        except ValueError as error:
            raise _explained(error, extra) from error
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
        if self._options.get(METRICS):
            count_experts(vllm_config, model_config, model)
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
        check_pruned(vllm_config, routing_map)
        layout, layers = mapped.checkpoint.layout, routing_map.by_layer()
        config = model_config.hf_text_config
        # Whatever asks the config later, after the layers exist, gets the largest count.
        set_counts(config, layout, routing_map.max_kept, routing_map.max_top_k)
        built_by(model_config, routing_map)
        constant = _constants(routing_map)
        with built_by_layer(layout, layers, _routers(routing_map, layout), constant):
            model = super().create_model(vllm_config, model_config, prefix)
        if asked := askers_by_count(model, config, mapped.checkpoint):
            kept = {number: layer.num_kept for number, layer in layers.items()}
            load_by_count(model, asked, layout, kept)
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
        folder = self._folder(model_config)
        mapped = mapped_checkpoint(folder, self._options, model_config.model)
        fetch_weights(mapped.checkpoint)
        return None if mapped.is_plain else mapped

    def _drafts(self, model_config: ModelConfig) -> DraftLoader:
        return DraftLoader(self.load_config, self._folder(model_config))

    def download_model(self, model_config: ModelConfig) -> None:
        """Bring the model onto this machine."""
        fetch_weights(Checkpoint.open(self._folder(model_config)))

    def _folder(self, model_config: ModelConfig) -> Path:
        return folder_of(model_config.model, model_config.revision, self.load_config.download_dir)


def folder_of(model: str, revision: str | None, download_dir: str | None) -> Path:
    """Return where a model is; of one on the hub its weights may not be there yet.

    :raises PruneError: as `fetch_facts`
    """
    # vLLM has its own switch for another hub.
    name = maybe_download_from_modelscope(model, revision)
    folder = Path(name or model)
    if folder.is_dir():
        return folder
    return fetch_facts(HubReference(model, revision), Path(download_dir) if download_dir else None)


def _explained(error: ValueError, extra: Mapping[str, Any]) -> PruneError:
    """Say what is wrong with `--model-loader-extra-config` without the parent's load format."""
    unknown = next((key for key in extra if f"'{key}'" in str(error)), None)
    if unknown is None:
        return PruneError(f"--model-loader-extra-config: {error}")
    meant = misspelt(unknown)
    return PruneError(
        f"--model-loader-extra-config has {unknown!r}, which pruned_moe does not know",
        hint=f'write "{meant}"' if meant else f"it knows {', '.join(OUR_KEYS)}",
    )


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
