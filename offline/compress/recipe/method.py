"""The `method` section: which method it is, and what is kept; what several methods are told."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from offline.compress.recipe.sections import Section
from offline.maps.router_kind import ROUTER_HELP, RouterKind, given_kind

Preset = Literal["fast", "paper"]
PRESET_HELP = (
    "eep's and lottery's numbers: paper has the papers', fast ours (eep races candidates and "
    "begins with one-shot maps, lottery trains small models)"
)
CRITERION_HELP = (
    "oneshot's and lottery's: min-NAME drops the lowest first, max-NAME the highest, a bare NAME "
    "the better end; `vmprune criteria` lists all; lottery also takes random"
)


class MethodSection(Section):
    """What every method is told."""

    title = "Method, and what is kept"

    name: str
    keep: int | None = Field(
        default=None, ge=1, description="experts to keep in every layer (E'); all to merge only"
    )
    ratio: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="in place of --keep: share of its experts that every layer drops, rounded down",
    )
    friendly: bool = Field(
        default=False,
        description="round --keep to the nearest number that vLLM's GPU kernels are made for "
        "(docs/serving.md)",
    )
    router: RouterKind | None = Field(default=None, description=ROUTER_HELP)
    seed: int = Field(default=0, ge=0, description="seed of all random choices")

    @field_validator("router", mode="before")
    @classmethod
    def _auto(cls, value: object) -> object:
        return given_kind(value)

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if sum(size is not None for size in (self.keep, self.ratio, self.total)) != 1:
            raise ValueError(
                "give one of --keep (experts per layer), --ratio and --budget (in all layers)"
            )
        if self.friendly and self.total is not None:
            raise ValueError(
                "--friendly rounds --keep; a search spreads --budget expert by expert: plan with "
                "vmprune plan --budget N --friendly"
            )
        return self

    @property
    def total(self) -> int | None:
        """Return the experts to keep in all layers together; None where each layer is told."""
        return None

    @property
    def active(self) -> str | None:
        """Return the active experts per token, as --top-k says it; None is the model's own."""
        return None

    @property
    def least(self) -> int:
        """Return how many experts every layer keeps at least."""
        return 1

    @property
    def substitutes(self) -> bool:
        """Whether vectors stand for the experts that are not kept."""
        return False


class WithTopK(MethodSection):
    """Told how many experts are active."""

    top_k: str | None = Field(
        default=None,
        description="active experts per token, for all layers (1) or by layer (0-14:2,15-29:1); "
        "the model's own if not given",
    )

    @field_validator("top_k", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return str(value) if type(value) is int else value  # a YAML file says `top_k: 1`

    @property
    def active(self) -> str | None:
        """Return the active experts per token, as the flag says it."""
        return self.top_k


class WithBudget(WithTopK):
    """Told how many experts all layers keep together."""

    budget: int | None = Field(
        default=None, ge=1, description="experts to keep in all layers together, instead of --keep"
    )
    floor: int = Field(default=1, ge=1, description="with --budget: no layer keeps fewer")

    @property
    def total(self) -> int | None:
        """Return the budget."""
        return self.budget

    @property
    def least(self) -> int:
        """Return the floor."""
        return self.floor
