"""One model in memory at a time: a lottery goes from checkpoint to checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from offline.runs.memory import give_back
from vllm_moe_prune.checkpoint import Checkpoint

if TYPE_CHECKING:
    from offline.engines.local.transformers import TransformersEngine
    from offline.runs.device import DType

ComputeDtype = Literal["bfloat16", "float32"]


@dataclass(slots=True)
class Loaded:
    """Opens checkpoints, the last one of which stays in memory."""

    device: str
    dtype: ComputeDtype
    _engine: TransformersEngine | None = None

    def open(self, folder: Path) -> TransformersEngine:
        """Return an engine on a checkpoint, with no map applied."""
        from offline.engines.local.transformers import TransformersEngine

        if self._engine is None or self._engine.folder != folder:
            self.release()
            self._engine = TransformersEngine(folder, device=self.device, dtype=self.dtype)
        self._engine.apply(None)
        return self._engine

    def release(self) -> None:
        """Give the memory back, for example to a finetune."""
        self._engine = None
        give_back(self.device)


def compute_dtype(dtype: DType, base: Checkpoint) -> ComputeDtype:
    """Return in which dtype all rounds are scored and measured: ``auto`` is the base's.

    Tuned weights are stored in float32 between rounds, whatever they are computed in.
    """
    if dtype != "auto":
        return dtype
    largest = max(base.tensors.values(), key=lambda info: info.num_bytes)
    return "float32" if largest.dtype == "F32" else "bfloat16"
