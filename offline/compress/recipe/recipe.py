"""`CompressRecipe`: the one schema behind `vmprune compress`'s flags and its recipe files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, JsonValue, model_validator

from offline.compress.recipe.lottery import LotterySection
from offline.compress.recipe.methods import (
    BaselineMethod,
    CriterionMethod,
    EepMethod,
    LotteryMethod,
    MethodSection,
)
from offline.compress.recipe.search import SearchSection
from offline.compress.recipe.sections import (
    BaseSection,
    DataSection,
    EngineSection,
    MeasureSection,
    OutputSection,
    Section,
    criterion_word,
)
from offline.lottery.schedule import RANDOM, LotterySettings
from offline.methods.baselines import ONE_SHOT
from offline.tasks.catalog import Split
from vllm_moe_prune.errors import PruneError


class CompressRecipe(BaseModel):
    """Everything that decides the outcome of a compression, by sections.

    Each kind of method has its own recipe: with the sections that it reads and no others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: BaseSection
    method: MethodSection
    data: DataSection = DataSection()
    measure: MeasureSection = MeasureSection()
    engine: EngineSection = EngineSection()
    output: OutputSection = OutputSection()

    @model_validator(mode="after")
    def _experts_can_be_read(self) -> Self:
        if self.engine.reads_experts:
            return self
        if "naee" in (self.method.name, *self.measure.baselines):
            raise ValueError(
                "naee reads what experts compute: it needs --engine transformers --replicas 1"
            )
        if self.criteria and self.data.scores is None:
            raise ValueError(
                f"{self.criteria[0]} reads what experts compute: give --scores, or "
                "--engine transformers --replicas 1"
            )
        return self

    @property
    def items(self) -> dict[Split, int | None]:
        """Return split -> items of each task; None is all."""
        return {"search": self.data.search_items, "test": self.measure.test_items}

    @property
    def guard(self) -> float | None:
        """Return how far below the base any task may fall; None where nothing is searched."""
        return None

    @property
    def chosen_by(self) -> str | None:
        """Return the one-shot method or the criterion's word that chooses; None for others."""
        return None

    @property
    def searched_by(self) -> tuple[str, ...]:
        """Return the criteria that a search begins with, with their directions."""
        return ()

    @property
    def criteria(self) -> tuple[str, ...]:
        """Return all criteria's words that are measured on the base: chosen by, compared with."""
        own = (self.chosen_by,) if self.chosen_by else ()
        found = (*own, *self.measure.baselines, *self.searched_by)
        return tuple(dict.fromkeys(word for word in found if word not in ONE_SHOT))

    @property
    def scored_by(self) -> tuple[str, ...]:
        """Return all criteria's words for which there must be scores."""
        return self.criteria

    def slack(self, num_layers: int) -> float | None:
        """Return how far below the best a candidate may be and still matter to the search.

        None evaluates all candidates on all items.
        """
        return None

    @property
    def inputs(self) -> tuple[object, ...]:
        """Return all that may name what is read: paths and words."""
        return tuple(v for _, section in self.sections() for v in dict(section).values())

    def sections(self) -> Iterator[tuple[str, Section]]:
        """Yield names and sections, in the order of the class."""
        for name in type(self).model_fields:
            yield name, getattr(self, name)

    def settings(self) -> dict[str, JsonValue]:
        """Return what decides the outcome, flag -> value: first what differs from the default.

        What is not given and has no default is left out, and so is what only says where something
        lies or runs.
        """
        return self._given() | self._defaults()

    def told(self, num_layers: int) -> dict[str, JsonValue]:
        """Return the same for people: what differs from the default, then the rest by itself.

        :raises PruneError: as `numbers`
        """
        given, rest = self._given(), {"defaults": self._defaults(), **self.numbers(num_layers)}
        return {**given, **{name: value for name, value in rest.items() if value}}

    def _given(self) -> dict[str, JsonValue]:
        return {flag: value for flag, value, default in self._plain() if not default}

    def _defaults(self) -> dict[str, JsonValue]:
        return {flag: value for flag, value, default in self._plain() if default}

    def _plain(self) -> Iterator[tuple[str, JsonValue, bool]]:
        """Yield flag, value and whether that is the default."""
        for section_name, section in self.sections():
            plain = section.model_dump(mode="json", exclude_none=True, exclude=set(section.places))
            for name, value in plain.items():
                same = getattr(section, name) == type(section).model_fields[name].default
                yield _flag(section_name, name), value, same

    def numbers(self, num_layers: int) -> dict[str, JsonValue]:
        """Return the method's numbers with the preset's where none was given; by section.

        :raises PruneError: naming the number that is out of range
        """
        return {}


class EepRecipe(CompressRecipe):
    """Evolutionary search over maps."""

    method: EepMethod
    search: SearchSection = SearchSection()

    @property
    def searched_by(self) -> tuple[str, ...]:
        """Return the criteria that the search begins with."""
        return self.search.criteria

    @property
    def items(self) -> dict[Split, int | None]:
        """Return also the items that finalists are re-ranked by."""
        return super().items | {"selection": self.search.selection_items}

    @property
    def guard(self) -> float | None:
        """Return how far below the base any task may fall."""
        return self.search.guard

    @property
    def races(self) -> bool:
        """Whether hopeless candidates are dropped; the preset's habit if not given."""
        return self.method.preset == "fast" if self.search.racing is None else self.search.racing

    def slack(self, num_layers: int) -> float | None:
        """Return how far below the best a candidate may be and still become a parent."""
        settings = self.search.settings(self.method, num_layers)
        return settings.mutation_threshold if self.races else None

    @property
    def seeds(self) -> bool:
        """Whether the search begins with the baselines' maps; the preset's habit if not given."""
        return self.method.preset == "fast" if self.search.seeding is None else self.search.seeding

    def numbers(self, num_layers: int) -> dict[str, JsonValue]:
        """Return the search's."""
        settings = self.search.settings(self.method, num_layers)
        return {"search": settings.model_dump(mode="json")}


class OneShotRecipe(CompressRecipe):
    """The experts that are lowest by a criterion go, in one step."""

    method: CriterionMethod

    @property
    def chosen_by(self) -> str:
        """Return the criterion with its direction."""
        return self.method.word


class BaselineRecipe(CompressRecipe):
    """A one-shot method that needs no scores chooses."""

    method: BaselineMethod

    @property
    def chosen_by(self) -> str:
        """Return the method's name."""
        return self.method.name


class LotteryRecipe(CompressRecipe):
    """Rounds of dropping and finetuning, each of which leaves a plain checkpoint of one size."""

    method: LotteryMethod
    lottery: LotterySection = LotterySection()

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if not self.engine.reads_experts:
            raise ValueError("lottery trains: it needs --engine transformers --replicas 1")
        if self.output.mtp not in (None, "drop"):
            mtp = self.output.mtp
            raise ValueError(f"--mtp {mtp}: a lottery trains, and MTP layers not: --mtp drop")
        if self.data.fitness == "agreement":
            raise ValueError("--fitness agreement is for searches; lottery measures accuracy")
        try:
            self.settings_of_rounds()
        except PruneError as error:
            raise ValueError(error.message) from None
        return self

    @property
    def rounds_by(self) -> tuple[str, ...]:
        """Return the criterion that every round goes by, with its direction; none at random."""
        word = self.method.criterion
        return () if word == RANDOM else (criterion_word("criterion", word),)

    @property
    def scored_by(self) -> tuple[str, ...]:
        """Return also what rounds go by."""
        return tuple(dict.fromkeys((*self.rounds_by, *self.criteria)))

    def settings_of_rounds(self) -> LotterySettings:
        """Return the numbers of all rounds.

        :raises PruneError: naming the setting that is out of range
        """
        return self.lottery.settings(self.method)

    def numbers(self, num_layers: int) -> dict[str, JsonValue]:
        """Return those of all rounds."""
        return {"lottery": self.settings_of_rounds().model_dump(mode="json")}


DEFAULT_METHOD = "eep"
# Method -> its recipe.
RECIPES: Mapping[str, type[CompressRecipe]] = {
    "eep": EepRecipe,
    "oneshot": OneShotRecipe,
    "lottery": LotteryRecipe,
    **dict.fromkeys(ONE_SHOT, BaselineRecipe),
}


def fields_of(recipe: type[CompressRecipe]) -> dict[str, tuple[str, str]]:
    """Return flag -> section and field of a recipe, the flag without dashes."""
    found: dict[str, tuple[str, str]] = {}
    for section_name, section in sections_of(recipe).items():
        for name in section.model_fields:
            found[_flag(section_name, name)] = (section_name, name)
    return found


def sections_of(recipe: type[CompressRecipe]) -> dict[str, type[Section]]:
    """Return name -> section of a recipe."""
    found: dict[str, type[Section]] = {}
    for name, field in recipe.model_fields.items():
        section: Any = field.annotation
        found[name] = section
    return found


def _flag(section: str, field: str) -> str:
    return section if field == "name" else field
