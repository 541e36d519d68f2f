"""`DraftLoader`: loads the draft (MTP) layers of a pruned model, as many experts as they have.

They are built in the form in which vLLM builds the base's: the routing map says nothing of them.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path

import torch
from vllm.config import ModelConfig, VllmConfig
from vllm.config.load import LoadConfig
from vllm.logger import init_logger
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.vllm_compat.drafts import counted_as_drafts
from vllm_moe_prune.vllm_compat.limits import check_draft
from vllm_moe_prune.vllm_compat.lora import experts_without_lora

logger = init_logger(f"vllm.{__name__}")


class DraftLoader(DefaultModelLoader):
    """Loads draft layers from the folder that has them: a built checkpoint, or the base itself."""

    def __init__(self, load_config: LoadConfig, folder: Path) -> None:
        super().__init__(load_config)
        self._checkpoint = Checkpoint.open(folder, mapped=True)

    def load_model(
        self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = ""
    ) -> torch.nn.Module:
        """Build and load the layers with their own counts of experts."""
        check_draft(vllm_config, model_config)
        with (
            counted_as_drafts(vllm_config, model_config, self._checkpoint.layout),
            experts_without_lora(vllm_config),
        ):
            model: torch.nn.Module = super().load_model(vllm_config, model_config, prefix)
        return model

    def get_all_weights(
        self, model_config: ModelConfig, model: torch.nn.Module
    ) -> Generator[tuple[str, torch.Tensor], None, None]:
        """Yield what is not of the decoder's layers: draft layers, embeddings, the head."""
        self.counter_before_loading_weights = time.perf_counter()  # what vLLM logs counts from it
        for name in self._checkpoint.tensors:
            if self._checkpoint.layout.place(name)[0] < 0:
                yield name, self._checkpoint.tensor(name)
