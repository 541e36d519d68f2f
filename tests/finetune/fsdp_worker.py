"""A worker whose `accelerate` shards on CPUs, too, which it does by itself on GPUs alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import accelerate.accelerator
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from offline.finetune import trainer, worker


class ShardingState(AcceleratorState):
    """Does on a CPU what the original does on a GPU when a configuration asks for FSDP."""

    def __init__(self, *args: Any, fsdp_plugin: Any, **more: Any) -> None:
        super().__init__(*args, fsdp_plugin=fsdp_plugin, **more)
        self.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        if self.mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self.mixed_precision)
        self.fsdp_plugin = fsdp_plugin


class Sharding(Accelerator):
    """Fails where a weight is whole in every process."""

    def prepare(self, *given: Any) -> Any:
        model, optimizer = super().prepare(*given)
        assert all(isinstance(weight, DTensor) for weight in model.parameters())
        return model, optimizer


if __name__ == "__main__":
    accelerate.accelerator.AcceleratorState = ShardingState
    trainer.Accelerator = Sharding
    sys.exit(worker.main(Path(sys.argv[1])))
