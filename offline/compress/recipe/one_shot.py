"""Recipes of methods that choose in one step: by a criterion, or without scores."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from offline.compress.recipe.method import CRITERION_HELP, WithBudget, WithTopK
from offline.compress.recipe.recipe import CompressRecipe
from offline.compress.recipe.sections import criterion_word
from offline.methods.baselines import ONE_SHOT


class CriterionMethod(WithBudget):
    """The experts that are lowest by a criterion go, in one step."""

    name: Literal["oneshot"]
    criterion: str = Field(default="min-ean", description=CRITERION_HELP)

    @model_validator(mode="after")
    def _known(self) -> Self:
        self.word  # noqa: B018  # refuses what is none
        return self

    @property
    def word(self) -> str:
        """Return the criterion with its direction.

        :raises ValueError: if there is none of this name
        """
        return criterion_word("criterion", self.criterion)


class OneShotRecipe(CompressRecipe):
    """The experts that are lowest by a criterion go, in one step."""

    method: CriterionMethod

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
