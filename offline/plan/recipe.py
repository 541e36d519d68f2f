"""`PlanRecipe`: the settings of a plan, behind `vmprune plan`'s flags and in its provenance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from offline.calibration.blend import parse_blend
from offline.criteria.registry import Rule
from offline.maps.per_layer import parse_numbers
from offline.maps.router_groups import RouterGroups
from offline.maps.router_kind import (
    ROUTER_HELP,
    SUBSTITUTE_HELP,
    RouterKind,
    check_substitute,
    given_kind,
)
from offline.methods.merging import MergeKind, MergeRouter
from offline.plan.protection import PERCENTILE, SHARE
from vllm_moe_prune.reading import validated

_SIZES = ("keep", "ratio", "keep_per_layer", "budget")
# What says how many are kept, not which go first.
_COUNTS = (*_SIZES, "floor", "friendly", "serve_ep", "serve_tp")
_ONE = RouterGroups()
# What says something only where another setting is given.
_GO_WITH = {
    "floor": "budget",
    "outlier_percentile": "protect_outliers",
    "outlier_share": "protect_outliers",
    "merge_router": "merge",
}


class PlanRecipe(BaseModel):
    """What is kept, by which criterion; field descriptions are the help."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    criterion: str = Field(
        default="min-ean",
        description="what decides: min-NAME drops the lowest first, max-NAME the highest, a bare "
        "NAME the better end; `vmprune criteria` lists all",
    )
    keep: int | None = Field(default=None, ge=1, description="experts to keep in every layer (E')")
    ratio: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="share of its experts that every layer drops, rounded down to whole experts",
    )
    keep_per_layer: str | None = Field(
        default=None, description="experts to keep by layer (0-14:4,15-29:2); the others keep all"
    )
    budget: int | None = Field(
        default=None,
        ge=1,
        description="experts to keep in all layers together: with --sensitivity where the model "
        "needs them, else by shares of importance, which were no better on average than the "
        "same number in each layer (docs/sensitivity.md)",
    )
    floor: int = Field(default=1, ge=1, description="with --budget: no layer keeps fewer")
    top_k: str | None = Field(
        default=None,
        description="active experts per token, for all layers (1) or by layer (0-14:2,15-29:1); "
        "the model's own if not given",
    )
    router: RouterKind | None = Field(default=None, description=ROUTER_HELP)
    domains: str | None = Field(
        default=None,
        description="weights of the scored domains (code:2,prose:1); all their tokens count the "
        "same if not given",
    )
    protect: str | None = Field(
        default=None, description="experts that stay, as LAYER:EXPERT (3:5,7:0-2)"
    )
    protect_outliers: bool = Field(
        default=False, description="super experts stay: those with extreme outputs"
    )
    outlier_percentile: float = Field(
        default=PERCENTILE,
        ge=0,
        le=100,
        description="a super expert's peak is above this percentile of all experts' peaks",
    )
    outlier_share: float = Field(
        default=SHARE, ge=0, le=1, description="and above this share of the largest peak"
    )

    friendly: bool = Field(
        default=False,
        description="round what each layer keeps to numbers that vLLM's GPU kernels are made for, "
        "to as few different ones as possible, within --budget (docs/serving.md)",
    )
    serve_ep: int | None = Field(
        default=None, ge=1, description="expert-parallel ranks to lint and round for"
    )
    serve_tp: int | None = Field(
        default=None, ge=1, description="tensor-parallel ranks to lint for"
    )
    substitute: bool = Field(default=False, description=SUBSTITUTE_HELP)
    merge: MergeKind | None = Field(
        default=None,
        description="merge experts instead of dropping them: by how alike their mean outputs are "
        "(HC-SMoE-like), or by how alike the router sees them (M-SMoE-like); the criterion then "
        "only spreads --budget over the layers",
    )
    merge_router: MergeRouter = Field(
        default="sum",
        description="score of merged experts: the sum of their scores, or that of the dominant "
        "(most used) one, which needs no router map",
    )

    @field_validator("router", mode="before")
    @classmethod
    def _auto(cls, value: object) -> object:
        return given_kind(value)

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if sum(getattr(self, name) is not None for name in _SIZES) != 1:
            raise ValueError("give one of --keep, --ratio, --keep-per-layer and --budget")
        if self.merge is not None and (self.protect is not None or self.protect_outliers):
            raise ValueError("--merge leaves no expert as it is; drop --protect and its like")
        if self.substitute:
            check_substitute(merge=self.merge, router=self.router)
        if self.merge is not None and self.merge_router == "sum" and self.router == "sliced":
            raise ValueError(
                "--router sliced: a router that adds up the scores of merged experts is mapped; "
                "--merge-router dominant takes one of them"
            )
        for name, with_what in _GO_WITH.items():
            changed = getattr(self, name) != type(self).model_fields[name].default
            if changed and not getattr(self, with_what):
                flag, other = (f"--{one.replace('_', '-')}" for one in (name, with_what))
                raise ValueError(f"{flag} changes nothing without {other}")
        return self

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> PlanRecipe:
        """Take the flags that were given (not None).

        :raises PruneError: naming the flag that is wrong
        """
        given = {name: value for name, value in flags.items() if value is not None}
        return validated(given, cls, "settings")

    @classmethod
    def choosing(cls) -> tuple[str, ...]:
        """Return the names of the settings that say which experts go first, not how many."""
        return tuple(name for name in cls.model_fields if name not in _COUNTS)

    def sized(self, **size: float | str) -> PlanRecipe:
        """Return the same choice with another size, and nothing else that says how many.

        :param size: one of keep, ratio, keep_per_layer and budget
        """
        none = {name: type(self).model_fields[name].default for name in _COUNTS}
        return self.model_copy(update={**none, **size})

    @property
    def choice(self) -> dict[str, JsonValue]:
        """What decides which experts go first, by the names of the settings that say it.

        :raises PruneError: if there is no criterion of this name
        """
        told: dict[str, JsonValue] = self.model_dump(mode="json", include=set(self.choosing()))
        return {**told, "criterion": self.rule.word}

    @property
    def rule(self) -> Rule:
        """The criterion with its direction.

        :raises PruneError: if there is none of this name
        """
        return Rule.parse(self.criterion)

    @property
    def blend(self) -> dict[str, float] | None:
        """Domain -> weight.

        :raises PruneError: naming the weight that is no number
        """
        return None if self.domains is None else parse_blend(self.domains)

    def counts(
        self, num_experts: Mapping[int, int], router: RouterGroups = _ONE
    ) -> int | dict[int, int] | None:
        """Return how many experts are kept: in every layer, by layer, or None with a budget.

        :param num_experts: decoder layer -> E
        :param router: a ratio is rounded to what its groups can share, as to whole experts
        :raises PruneError: if --keep-per-layer is not understood
        """
        if self.ratio is not None:
            # 0.3 x 10 is 2.9999999999999996 in floating point and means 3.
            share = self.ratio + 1e-9
            exact = {n: count - math.floor(share * count) for n, count in num_experts.items()}
            return {n: router.rounded_up(count) for n, count in exact.items()}
        if self.keep_per_layer is not None:
            text = self.keep_per_layer
            return parse_numbers("--keep-per-layer", "keeps", text, num_experts)
        return self.keep
