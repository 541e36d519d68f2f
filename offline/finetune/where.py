"""Where a finetune runs: the processes and devices that share it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Where:
    """Where and how a finetune runs; plays no part in the result.

    :param processes: more than one start through ``accelerate launch``
    :param accelerate_config: a file of ``accelerate config``, for example with FSDP
    :param save_every: optimizer steps between two states from which a killed finetune goes on;
        without it, it begins again
    """

    device: str = "cpu"
    processes: int = 1
    accelerate_config: Path | None = None
    save_every: int | None = None
