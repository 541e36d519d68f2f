"""The space of routing maps of a base model: how many experts are kept and how many active."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from offline.maps.depth_groups import DepthGroup, Groups, depth_groups, even_rows, fits, total_kept
from offline.maps.genome import Coefficients, Genome, Kept, Matrix
from offline.maps.map_entries import Entry, entry_of, substituted_entry
from offline.maps.moe_shape import MoeShape
from offline.maps.per_layer import top_k_by_layer
from offline.maps.router_groups import RouterGroups
from offline.maps.router_kind import RouterKind, check_router, slices
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layer_map import LayerMap
from vllm_moe_prune.layouts import layout_of
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap
from vllm_moe_prune.substitutes import check_substitutable

__all__ = ["Kept", "Space"]


@dataclass(frozen=True, slots=True)
class Space:
    """A base model and what its maps may keep.

    Every layer keeps ``keep`` experts (or what it says of the layer); or all layers together at
    most ``budget`` and each at least ``floor``, spread by the method; or, where neither is given,
    all. ``top_k`` is decoder layer -> how many the maps activate per token. Where a router chooses
    groups first, every group keeps equally many, and one-hot maps keep gate rows even where the
    shape would have the scores mapped. ``router`` asks for one kind of router everywhere: of a
    sliced one all maps must select distinct experts. With ``substitutes`` the router goes on
    choosing among all experts, so that neither its groups nor top-k bound what is kept.

    :raises PruneError: if the model cannot keep or activate so many
    """

    shape: MoeShape
    top_k: Mapping[int, int]
    keep: int | Mapping[int, int] | None = None
    budget: int | None = None
    floor: int = 1
    router: RouterKind = "auto"
    substitutes: bool = False

    def __post_init__(self) -> None:
        check_router(self.shape, self.router)
        if self.substitutes:
            check_substitutable(layout_of({"model_type": self.shape.model_type}))
        if self.keep is not None and self.budget is not None:
            raise PruneError("--keep and --budget exclude each other")
        self._check_counts()
        self._check_top_k()
        self._check_groups()
        if self.budget is not None:
            self._check_budget(self.budget)

    @classmethod
    def of(
        cls,
        shape: MoeShape,
        keep: int | Mapping[int, int] | None = None,
        top_k: int | str | Mapping[int, int] | None = None,
        *,
        budget: int | None = None,
        floor: int = 1,
        router: RouterKind | None = None,
        substitutes: bool = False,
    ) -> Space:
        """Say what maps of a model may keep; ``top_k`` None means its own in every layer.

        :param top_k: also as text, see `top_k_by_layer`
        """
        active = top_k_by_layer(top_k, shape.top_k)
        return cls(shape, active, keep, budget, floor, router or "auto", substitutes)

    @property
    def num_experts(self) -> Mapping[int, int]:
        """Return decoder layer -> E."""
        return self.shape.num_experts

    @property
    def layers(self) -> tuple[int, ...]:
        """Return the decoder layers that have experts, in order."""
        return self.shape.layers

    @property
    def router_groups(self) -> RouterGroups:
        """Return the groups that must keep equally many: those that the router chooses among."""
        return RouterGroups() if self.substitutes else self.shape.router_groups

    @property
    def keeps_all(self) -> bool:
        """Whether no expert is dropped anywhere (E' = E)."""
        return all(self._bounds(layer)[0] == self.num_experts[layer] for layer in self.layers)

    def groups(self, num_groups: int | None = None) -> Groups:
        """Return the depth groups with their bounds; None makes one of each layer.

        :raises PruneError: if layers of one group have different numbers of experts, or the group's
            least, which is that of its layer with the highest top-k, is more than the budget holds
        """
        split = depth_groups(self.layers, len(self.layers) if num_groups is None else num_groups)
        groups = tuple(self.group(layers) for layers in split)
        least = total_kept([group.least for group in groups], groups)
        if self.budget is not None and least > self.budget:
            raise PruneError(
                f"--budget {self.budget}: {len(groups)} depth groups keep at least {least} experts",
                hint=f"--budget {least} or more, or --groups layer",
            )
        return groups

    def routing_map(
        self,
        kept: Mapping[int, Kept],
        provenance: Provenance,
        tokens_seen: Mapping[int, Sequence[int]] | None = None,
        outputs: Mapping[int, Matrix] | None = None,
    ) -> RoutingMap:
        """Make the one-hot map that keeps these experts.

        :param kept: decoder layer -> expert ids, in any order
        :param outputs: with ``substitutes``, decoder layer -> vectors [E, D] of which those of the
            other experts stand for them
        """
        entries = {
            layer: substituted_entry(kept[layer], outputs[layer], f"layers.{layer}")
            if outputs is not None
            else self._entry(Coefficients.one_hot(kept[layer], count), "")
            for layer, count in self.num_experts.items()
        }
        rows = {layer: len(kept[layer]) for layer in self.layers}
        return self._build(entries, rows, provenance, tokens_seen)

    def genome_map(
        self,
        genome: Genome,
        groups: Groups,
        provenance: Provenance,
        tokens_seen: Mapping[int, Sequence[int]] | None = None,
    ) -> RoutingMap:
        """Make the map of a genome; the layers of a group share its matrices.

        :param groups: as `groups` gave them, one for each of the genome's
        """
        entries: dict[int, Entry] = {}
        rows: dict[int, int] = {}
        for number, (group, coefficients) in enumerate(zip(groups, genome.groups, strict=True)):
            entry = self._entry(coefficients, f"group.{number}")
            entries |= dict.fromkeys(group.layers, entry)
            rows |= dict.fromkeys(group.layers, coefficients.rows)
        return self._build(entries, rows, provenance, tokens_seen)

    def accepts(self, genome: Genome, groups: Groups) -> bool:
        """Whether a genome has these groups and keeps to the bounds and the budget."""
        columns = [coefficients.num_experts for coefficients in genome.groups]
        return (
            columns == [g.num_experts for g in groups]
            and fits(genome.rows, groups, self.budget)
            and all(self.router_groups.are_balanced(c.main, c.num_experts) for c in genome.groups)
        )

    def even_counts(self, groups: Groups | None = None) -> dict[int, int]:
        """Return how many experts each layer keeps where a budget is spread evenly.

        :param groups: spread it over these; None: over the layers
        """
        groups = self.groups() if groups is None else groups
        rows = zip(groups, even_rows(groups, self.budget), strict=True)
        return {layer: count for group, count in rows for layer in group.layers}

    def _entry(self, coefficients: Coefficients, name: str) -> Entry:
        entry = entry_of(coefficients, name, slices=slices(self.shape, self.router))
        assert entry.router == "sliced" or self.router != "sliced", "mixed scores cannot be sliced"
        return entry

    def _build(
        self,
        entries: Mapping[int, Entry],
        rows: Mapping[int, int],
        provenance: Provenance,
        tokens_seen: Mapping[int, Sequence[int]] | None,
    ) -> RoutingMap:
        layers = tuple(
            LayerMap(
                layer=layer,
                num_experts=count,
                num_kept=rows[layer],
                top_k=self.top_k[layer],
                experts=entries[layer].experts,
                router=entries[layer].router,
                router_rows=entries[layer].router_rows,
                substituted=entries[layer].substituted,
            )
            for layer, count in self.num_experts.items()
        )
        seen = (
            {k: tuple(int(n) for n in v) for k, v in tokens_seen.items()} if tokens_seen else None
        )
        return RoutingMap.build(
            model_type=self.shape.model_type,
            base=self.shape.base,
            num_groups=self.shape.num_groups,
            layers=layers,
            matrices={k: v for entry in entries.values() for k, v in entry.matrices.items()},
            tokens_seen=seen,
            provenance=provenance,
        )

    def _bounds(self, layer: int) -> tuple[int, int]:
        """Fewest and most experts that a layer may keep."""
        count = self.num_experts[layer]
        if self.keep is not None:
            keep = self.keep if isinstance(self.keep, int) else self.keep[layer]
            return keep, keep
        if self.budget is None or self.budget == sum(self.num_experts.values()):
            return count, count
        active = 1 if self.substitutes else self.top_k[layer]
        least = max(self.floor, self.router_groups.least(active))
        return min(self.router_groups.rounded_up(least), count), count

    def group(self, layers: tuple[int, ...]) -> DepthGroup:
        """Return these layers as one group, bounded by those of its layers.

        :raises PruneError: if they have different numbers of experts
        """
        for layer in layers:
            if self.num_experts[layer] != self.num_experts[layers[0]]:
                raise PruneError(
                    f"layers {layers[0]} and {layer} of one depth group have "
                    f"{self.num_experts[layers[0]]} and {self.num_experts[layer]} experts",
                    hint="--groups layer",
                )
        least = max(self._bounds(layer)[0] for layer in layers)
        experts, most = self.num_experts[layers[0]], self._bounds(layers[0])[1]
        return DepthGroup(layers, experts, least, most, self.shape.num_groups)

    def _check_counts(self) -> None:
        for layer, experts in self.num_experts.items():
            kept = self._bounds(layer)[0] if self.keep is not None else 1
            for name, count in (("keep", kept), ("floor", self.floor)):
                if not 1 <= count <= experts:
                    raise PruneError(f"--{name} {count}: layer {layer} has {experts} experts")

    def _check_budget(self, budget: int) -> None:
        total = sum(self.num_experts.values())
        if budget > total:
            raise PruneError(f"--budget {budget}: the model has {total} experts in all")
        least = sum(self._bounds(layer)[0] for layer in self.layers)
        if budget < least:
            raise PruneError(
                f"--budget {budget} is less than the {least} experts that {len(self.layers)} "
                f"layers keep at least (--floor {self.floor}, and what --top-k activates)",
                hint=f"--budget {least} or more, or a lower --floor or --top-k",
            )

    def _check_top_k(self) -> None:
        for layer in self.layers:
            top_k, most = self.top_k[layer], self._bounds(layer)[1]
            if self.substitutes:
                most = self.num_experts[layer]
            if 1 <= top_k <= most:
                continue
            differ = len(set(self.top_k.values())) > 1 or isinstance(self.keep, Mapping)
            where = f" in layer {layer}" if differ else ""
            raise PruneError(
                f"--top-k {top_k}{where} does not fit {most} kept experts",
                hint="keep at least as many experts as are active per token",
            )

    def _check_groups(self) -> None:
        router = self.router_groups
        if router.count == 1:
            return
        for layer, experts in self.num_experts.items():
            kept, where = self._bounds(layer)[1], f"layer {layer}: the router"
            least = router.least(self.top_k[layer])
            if kept % router.count:
                above = router.rounded_up(kept)
                near = [str(n) for n in (above - router.count, above) if n >= least] or [str(least)]
                raise PruneError(
                    f"{where}'s {router.count} groups cannot share {kept} experts equally",
                    hint=f"keep {' or '.join(near)}",
                )
            if router.reachable(kept) < self.top_k[layer] or kept < min(least, experts):
                raise PruneError(
                    f"{where} takes top-{self.top_k[layer]} from {router.active} of "
                    f"{router.count} groups, for which {kept} kept experts are too few",
                    hint=f"keep {least} or more",
                )
