"""`LayerMap`: what becomes of the experts and of the router of one decoder layer.

E is the number of experts before pruning, E' the number after.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Selection(BaseModel):
    """A matrix [E', E]: one-hot as the list ``kept`` of old expert ids, or by the name of a matrix.

    Row j of the matrix says which old experts make up new expert j.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kept: tuple[int, ...] | None = None
    matrix: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _exactly_one(self) -> Selection:
        if (self.kept is None) == (self.matrix is None):
            raise ValueError("give either `kept` (expert ids) or `matrix` (a name), not both")
        return self


class LayerMap(BaseModel):
    """The routing map of one layer; the fields and rules are those of docs/routing-map.md."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int = Field(ge=0)
    num_experts: int = Field(ge=1)
    num_kept: int = Field(ge=1)
    top_k: int = Field(ge=1)
    experts: Selection
    router: Literal["sliced", "mapped"] = "sliced"
    router_rows: Selection | None = None

    @property
    def router_selection(self) -> Selection:
        """W_RM as a selection; the same as the experts' where ``router_rows`` is not given."""
        return self.router_rows or self.experts

    @property
    def gate_rows(self) -> int:
        """How many logits the router's gate has in the pruned model: E' if sliced, E if mapped."""
        return self.num_kept if self.router == "sliced" else self.num_experts

    @model_validator(mode="after")
    def _rules(self) -> LayerMap:
        where = f"layer {self.layer}"
        if self.num_kept > self.num_experts:
            raise ValueError(
                f"{where}: num_kept {self.num_kept} is more than num_experts {self.num_experts}"
            )
        if self.top_k > self.num_kept:
            raise ValueError(
                f"{where}: top_k {self.top_k} is more than the {self.num_kept} experts kept"
            )
        for name, selection in (("experts", self.experts), ("router_rows", self.router_rows)):
            if selection is not None and selection.kept is not None:
                _check_kept(f"{where}: {name}", selection.kept, self.num_kept, self.num_experts)
        if self.router == "sliced" and self.router_selection.kept is None:
            raise ValueError(
                f"{where}: a sliced router needs the expert ids of its rows (`router_rows.kept`); "
                "a matrix needs `router: mapped`"
            )
        return self


def _check_kept(where: str, kept: tuple[int, ...], num_kept: int, num_experts: int) -> None:
    if len(kept) != num_kept:
        raise ValueError(f"{where} lists {len(kept)} experts but num_kept is {num_kept}")
    for expert in kept:
        if not 0 <= expert < num_experts:
            raise ValueError(f"{where}: expert {expert} is out of range 0..{num_experts - 1}")
    twice = next((expert for expert in kept if kept.count(expert) > 1), None)
    if twice is not None:
        raise ValueError(f"{where}: expert {twice} is listed twice")
