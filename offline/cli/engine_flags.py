"""Which flags of `vmprune eval` and `sweep` go with which engine."""

from __future__ import annotations

from offline.engines.opened import EngineName
from vllm_moe_prune.errors import PruneError


def check_engine(engine: EngineName, tensor_parallel: int, device: str) -> None:
    """Refuse flags that are of the other engine."""
    if engine == "transformers" and tensor_parallel > 1:
        raise PruneError("--tensor-parallel is of --engine vllm", hint="add --engine vllm")
    if engine == "vllm" and device != "auto":
        raise PruneError("--device is of --engine transformers", hint="leave out --device")


def refuse(flags: dict[str, bool]) -> None:
    """Refuse flags that say how to load a model where a server has loaded it."""
    for flag, given in flags.items():
        if given:
            raise PruneError(f"{flag} does not go with --endpoint", hint="the server decides that")
