"""`LayerMap`: what becomes of the experts and of the router of one decoder layer.

E is the number of experts before pruning, E' the number after, S that of substituted ones. A router
chooses among E' + S.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, model_validator

MOST_EXPERTS = 4096  # of a layer: what it declares takes memory
MOST_LAYERS = 9999


class Selection(BaseModel):
    """A matrix [E', E]: one-hot as the list ``kept`` of old expert ids, or by the name of a matrix.

    Row j of the matrix says which old experts make up new expert j.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kept: tuple[StrictInt, ...] | None = None
    matrix: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _exactly_one(self) -> Selection:
        if (self.kept is None) == (self.matrix is None):
            raise ValueError("give either `kept` (expert ids) or `matrix` (a name), not both")
        return self


class Substituted(BaseModel):
    """Old experts that the router still chooses and whose output is a constant vector."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    experts: tuple[int, ...] = Field(min_length=1)  # S old expert ids
    vectors: str = Field(min_length=1)  # name of a matrix [S, D]


class LayerMap(BaseModel):
    """The routing map of one layer; the fields and rules are those of docs/routing-map.md."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int = Field(ge=0, le=MOST_LAYERS, strict=True)
    num_experts: int = Field(ge=1, le=MOST_EXPERTS, strict=True)
    num_kept: int = Field(ge=1, strict=True)
    top_k: int = Field(ge=1, strict=True)
    experts: Selection
    router: Literal["sliced", "mapped"] = "sliced"
    router_rows: Selection | None = None
    substituted: Substituted | None = None

    @property
    def router_selection(self) -> Selection:
        """W_RM [E' + S, E] as a selection.

        The experts' where ``router_rows`` is not given; with those that are substituted, all by
        their old ids in ascending order.
        """
        if self.router_rows is not None or self.substituted is None:
            return self.router_rows or self.experts
        return Selection(kept=tuple(sorted((*(self.experts.kept or ()), *self.constant_ids))))

    @property
    def constant_ids(self) -> tuple[int, ...]:
        """Old ids of the substituted experts, in the order of their vectors."""
        return () if self.substituted is None else self.substituted.experts

    @property
    def num_choices(self) -> int:
        """How many the router chooses among: E' + S."""
        return self.num_kept + len(self.constant_ids)

    @property
    def choices(self) -> tuple[int, ...]:
        """What each choice of the router leads to: new expert j, or vector s as -1 - s."""
        own = (*range(self.num_kept), *(-1 - s for s in range(len(self.constant_ids))))
        if self.substituted is None or self.router_rows is not None:
            return own
        of_id = dict(zip((*(self.experts.kept or ()), *self.constant_ids), own, strict=True))
        return tuple(of_id[expert] for expert in self.router_selection.kept or ())

    @property
    def slots(self) -> tuple[int, ...]:
        """Where each choice of the router lies in a model that has all E experts.

        An expert that is kept or substituted in its own place; where experts are merged, the new
        ones in the first E' and those that are substituted behind them.
        """
        kept = self.experts.kept
        if kept is None:
            return tuple(range(self.num_choices))
        return tuple(kept[c] if c >= 0 else self.constant_ids[-1 - c] for c in self.choices)

    @property
    def gate_rows(self) -> int:
        """How many logits the router's gate has in the pruned model: E if mapped, else E' + S."""
        return self.num_choices if self.router == "sliced" else self.num_experts

    @model_validator(mode="after")
    def _rules(self) -> LayerMap:
        where = f"layer {self.layer}"
        if self.num_kept > self.num_experts:
            raise ValueError(
                f"{where}: num_kept {self.num_kept} is more than num_experts {self.num_experts}"
            )
        if self.substituted is not None:
            self._check_substituted(f"{where}: substituted", self.constant_ids)
        if self.top_k > self.num_choices:
            also = f" and {len(self.constant_ids)} substituted" if self.substituted else ""
            raise ValueError(
                f"{where}: top_k {self.top_k} is more than the {self.num_kept} experts kept{also}"
            )
        for name, selection, count in (
            ("experts", self.experts, self.num_kept),
            ("router_rows", self.router_rows, self.num_choices),
        ):
            if selection is not None and selection.kept is not None:
                _check_kept(f"{where}: {name}", selection.kept, count, self)
        if self.router == "sliced" and self.router_selection.kept is None:
            raise ValueError(
                f"{where}: a sliced router needs the expert ids of its rows (`router_rows.kept`); "
                "a matrix needs `router: mapped`"
            )
        return self

    def _check_substituted(self, where: str, ids: tuple[int, ...]) -> None:
        if self.experts.kept is None and self.router_rows is None:
            raise ValueError(f"{where} beside merged experts needs `router_rows`")
        both = set(ids).intersection(self.experts.kept or ())
        if both:
            raise ValueError(f"{where}: expert {min(both)} is kept")
        _check_kept(where, ids, len(ids), self)
        if self.num_choices > self.num_experts:
            raise ValueError(
                f"{where}: {len(ids)} and num_kept {self.num_kept} are more than num_experts "
                f"{self.num_experts}"
            )


def _check_kept(where: str, kept: tuple[int, ...], count: int, layer: LayerMap) -> None:
    if len(kept) != count:
        wanted = "num_kept is" if count == layer.num_kept else "the router chooses among"
        raise ValueError(f"{where} lists {len(kept)} experts but {wanted} {count}")
    for expert in kept:
        if not 0 <= expert < layer.num_experts:
            raise ValueError(f"{where}: expert {expert} is out of range 0..{layer.num_experts - 1}")
    if len(set(kept)) < len(kept):
        twice = next(expert for expert in kept if kept.count(expert) > 1)
        raise ValueError(f"{where}: expert {twice} is listed twice")


def check_groups(layer: LayerMap, num_groups: int) -> None:
    """Refuse what a router that first chooses among groups of experts cannot do.

    :raises ValueError: unless each keeps, or substitutes, the same number of experts
    """
    if num_groups == 1:
        return
    size, rest = divmod(layer.num_experts, num_groups)
    if rest or layer.router_selection.kept is None:
        raise ValueError(f"layer {layer.layer}: a router with {num_groups} groups needs kept ids")
    if layer.router == "mapped":
        raise ValueError(
            f"layer {layer.layer}: a router that first chooses among {num_groups} groups cannot be "
            "mapped"
        )
    kept = [expert // size for expert in layer.router_selection.kept]
    if kept != sorted(kept) or len({kept.count(group) for group in range(num_groups)}) != 1:
        raise ValueError(
            f"layer {layer.layer}: all {num_groups} router groups must keep the same number of "
            "experts, in order"
        )
