"""`Served`: what a server of a pruned model says of it, in its log and over HTTP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal

from vllm_moe_prune.layer_map import LayerMap
from vllm_moe_prune.mapped_checkpoint import METRICS, MappedCheckpoint

ServedForm = Literal["plain", "compact", "map-only"]


@dataclass(frozen=True, slots=True)
class ServedLayer:
    """A decoder layer with experts: E' of E, and k active ones."""

    layer: int
    experts: int
    of: int
    top_k: int
    router: str
    merged: bool

    @classmethod
    def by(cls, layer: LayerMap) -> ServedLayer:
        """Return what a map says of a layer."""
        counts = (layer.num_kept, layer.num_experts, layer.top_k)
        return cls(layer.layer, *counts, layer.router, layer.experts.matrix is not None)


@dataclass(frozen=True, slots=True)
class Served:
    """A pruned model as it is served.

    :ivar model: as the server was told; of a map-only model it is the base
    :ivar map_from: the routing map that is applied while loading, as the server was told
    :ivar base: what the map calls its base
    :ivar bytes_before: of all experts in the base, ``bytes_after`` of those that are served
    """

    form: ServedForm
    model: str
    map_from: str | None
    digest: str
    base: str
    method: str
    layers: tuple[ServedLayer, ...]
    bytes_before: int
    bytes_after: int
    expert_metrics: bool = False

    @classmethod
    def of(cls, mapped: MappedCheckpoint, model: str, options: Mapping[str, Any]) -> Served:
        """Describe what the plugin loads.

        :param options: our keys of ``--model-loader-extra-config``
        """
        routing_map, map_from = mapped.routing_map, options.get("routing_map")
        form: ServedForm = "plain" if mapped.is_plain else "compact"
        if map_from is not None:
            form = "map-only"
        before, after = _expert_bytes(mapped, applied=map_from is not None)
        return cls(
            form=form,
            model=model,
            map_from=map_from,
            digest=routing_map.digest(),
            base=routing_map.base.name,
            method=routing_map.provenance.method,
            layers=tuple(ServedLayer.by(layer) for layer in routing_map.layers),
            bytes_before=before,
            bytes_after=after,
            expert_metrics=bool(options.get(METRICS, False)),
        )

    @property
    def experts(self) -> tuple[int, int]:
        """How many experts are served in all layers, and of how many."""
        return sum(one.experts for one in self.layers), sum(one.of for one in self.layers)

    def facts(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        served, of = self.experts
        fields = asdict(self) | {"layers": [asdict(one) for one in self.layers]}
        return {"pruned": True, "experts": served, "experts_of": of} | fields

    def card(self) -> dict[str, Any]:
        """Return the few facts that stand beside a model's name."""
        served, of = self.experts
        facts = {"form": self.form, "experts": served, "experts_of": of}
        return facts | {"routing_map": self.digest, "base": self.base}

    def block(self) -> str:
        """Return what the log says, in a few lines."""
        served, of = self.experts
        saved = self.bytes_before - self.bytes_after
        lines = [
            f"pruned model ({self.form}): {self.model}",
            f"  experts: {served} of {of} in {len(self.layers)} layers; {self._by_layer()}",
            f"  saved: {_size(saved)} of {_size(self.bytes_before)} of experts",
            f"  routing map: {self.digest}" + (f" from {self.map_from}" if self.map_from else ""),
            f"  base: {self.base or 'unnamed'}; chosen by {self.method}",
        ]
        return "\n".join(lines)

    def _by_layer(self) -> str:
        """Say how many each layer has: runs of equal layers as one."""
        runs = []
        for said, run in groupby(self.layers, _said):
            numbers = [one.layer for one in run]
            first, last = numbers[0], numbers[-1]
            where = f"layer {first}" if first == last else f"layers {first}-{last}"
            runs.append((where, said))
        if len(runs) <= _MOST_RUNS:
            return "; ".join(f"{where}: {said}" for where, said in runs)
        counts = Counter(_said(one) for one in self.layers)
        most = counts.most_common(_MOST_RUNS)
        return "; ".join(f"{count} layers: {said}" for said, count in most)


_MOST_RUNS = 12


def _said(layer: ServedLayer) -> str:
    kind = [layer.router] if layer.router != "sliced" else []
    kind += ["merged"] if layer.merged else []
    return " ".join([f"{layer.experts} of {layer.of} (top-{layer.top_k})", *kind])


def _expert_bytes(mapped: MappedCheckpoint, *, applied: bool) -> tuple[int, int]:
    """Return the bytes of the experts of all pruned layers, before and after.

    :param applied: the checkpoint is the base, not what was built of it
    """
    checkpoint = mapped.checkpoint
    stored: Counter[int] = Counter()
    for name, info in checkpoint.tensors.items():
        role = checkpoint.layout.classify(name)
        if role is not None and role.kind != "router":
            stored[role.layer] += info.num_bytes
    before = after = 0
    for layer in mapped.routing_map.layers:
        found = stored[layer.layer]
        if applied:
            before += found
            after += found * layer.num_kept // layer.num_experts
        else:
            before += found * layer.num_experts // layer.num_kept
            after += found
    return before, after


def _size(num_bytes: int) -> str:
    if num_bytes < 2**30 / 10:
        return f"{num_bytes / 2**20:.2f} MiB"
    return f"{num_bytes / 2**30:.2f} GiB"
