"""The ways to serve one random Mixtral: whole, pruned in each form, by either load format."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from benchmarks.dummy_model import Shape
from benchmarks.random_model import write_random_model
from benchmarks.watched_server import WatchedServer
from offline.build.build import build
from serve.server import ServerSpec
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap

# A small cache and small batches: otherwise their memory, which pruning does not change, would be
# larger than that of the weights.
_SETTINGS = {
    "max_model_len": 128,
    "num_gpu_blocks_override": 16,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 256,
}


@dataclass(frozen=True, slots=True)
class Side:
    """One way to serve a folder."""

    model: Path
    load_format: str = "auto"
    routing_map: Path | None = None

    def server(self, log: Path, *, eager: bool) -> WatchedServer:
        """A server for it, not started."""
        extra = {"routing_map": str(self.routing_map)} if self.routing_map else None
        flags = [(f"--{name.replace('_', '-')}", str(value)) for name, value in _SETTINGS.items()]
        spec = ServerSpec(
            self.model,
            load_format=self.load_format,
            loader_extra_config=extra,
            dtype="bfloat16",
            enforce_eager=eager,
            extra_args=("--no-enable-prefix-caching", *chain.from_iterable(flags)),
        )
        return WatchedServer(spec, log)

    def engine(self, *, eager: bool) -> dict[str, Any]:
        """Arguments of `vllm.LLM` that serve it in the same way; without its routing map."""
        assert self.routing_map is None
        return {
            "model": str(self.model),
            "load_format": self.load_format,
            "dtype": "bfloat16",
            "enforce_eager": eager,
            "enable_prefix_caching": False,
            **_SETTINGS,
        }


def make_sides(folder: Path, shape: Shape) -> dict[str, Side]:
    """Every way to serve, with its checkpoint and map written below ``folder``."""
    base = write_random_model(folder / "base", shape)
    checkpoint = Checkpoint.open(base)
    half = _map(checkpoint, "sliced", (4, 4))
    build(checkpoint, half, folder / "plain")
    half.save(folder / "map")
    for router in ("sliced", "mapped"):  # counts that differ by layer, or sliced would be plain
        build(checkpoint, _map(checkpoint, router, (3, 5)), folder / f"compact-{router}")
    return {
        "base": Side(base),
        "map-only": Side(base, "pruned_moe", folder / "map"),
        "plain": Side(folder / "plain"),
        "plain-pruned_moe": Side(folder / "plain", "pruned_moe"),
        "compact-sliced": Side(folder / "compact-sliced", "pruned_moe"),
        "compact-mapped": Side(folder / "compact-mapped", "pruned_moe"),
    }


def _map(
    checkpoint: Checkpoint, router: Literal["sliced", "mapped"], kept: tuple[int, int]
) -> RoutingMap:
    """Keep the first experts of each layer: ``kept`` many in even and in odd ones."""
    layers = tuple(
        LayerMap(
            layer=layer,
            num_experts=count,
            num_kept=kept[layer % 2],
            top_k=2,
            experts=Selection(kept=tuple(range(kept[layer % 2]))),
            router=router,
        )
        for layer, count in checkpoint.expert_counts().items()
    )
    return RoutingMap.build(
        model_type=checkpoint.layout.model_type,
        base=checkpoint.fingerprint(),
        layers=layers,
        provenance=Provenance.now("benchmark"),
    )
