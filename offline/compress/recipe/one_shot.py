"""Recipes of methods that choose in one step: by a criterion, or without scores."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from offline.compress.recipe.method import CRITERION_HELP, WithBudget, WithTopK
from offline.compress.recipe.recipe import CompressRecipe
from offline.compress.recipe.sections import criterion_word
from offline.maps.router_kind import SUBSTITUTE_HELP, check_substitute
from offline.methods.baselines import ONE_SHOT


class CriterionMethod(WithBudget):
    """The experts that are lowest by a criterion go, in one step."""

    name: Literal["oneshot"]
    criterion: str = Field(default="min-ean", description=CRITERION_HELP)
    # None in place of false, so that runs of before there was such a flag go on.
    substitute: bool | None = Field(default=None, description=SUBSTITUTE_HELP)

    @field_validator("substitute")
    @classmethod
    def _given(cls, value: bool | None) -> bool | None:
        return value or None

    @model_validator(mode="after")
    def _known(self) -> Self:
        self.word  # noqa: B018  # refuses what is none
        if self.substitutes:
            check_substitute(router=self.router)
        return self

    @property
    def substitutes(self) -> bool:
        """Whether vectors stand for the experts that are not kept."""
        return bool(self.substitute)

    @property
    def word(self) -> str:
        """Return the criterion with its direction.

        :raises ValueError: if there is none of this name
        """
        return criterion_word("criterion", self.criterion)


class OneShotRecipe(CompressRecipe):
    """The experts that are lowest by a criterion go, in one step."""

    method: CriterionMethod

    @model_validator(mode="after")
    def _can_be_substituted(self) -> Self:
        if self.method.substitutes and "naee" in self.measure.baselines:
            raise ValueError(
                "--compare naee: it goes by what layers do without experts, not by what they do "
                "with --substitute"
            )
        if self.method.substitutes and self.engine.cuda_graphs:
            raise ValueError(
                "--cuda-graphs: a recorded model has no vectors that stand for experts, as "
                "--substitute has them"
            )
        return self

    @property
    def chosen_by(self) -> str:
        """Return the criterion with its direction."""
        return self.method.word


class BaselineMethod(WithTopK):
    """A one-shot method that needs no scores."""

    name: str

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ONE_SHOT:
            raise ValueError(f"none of {', '.join(ONE_SHOT)}")
        return name


class BaselineRecipe(CompressRecipe):
    """A one-shot method that needs no scores chooses."""

    method: BaselineMethod

    @property
    def chosen_by(self) -> str:
        """Return the method's name."""
        return self.method.name
