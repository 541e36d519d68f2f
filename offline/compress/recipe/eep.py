"""EEP's recipe: an evolutionary search over maps."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from offline.compress.recipe.method import PRESET_HELP, Preset, WithBudget
from offline.compress.recipe.recipe import CompressRecipe
from offline.compress.recipe.sections import Section, criterion_word
from offline.methods import eep
from offline.tasks.catalog import Split
from offline.tasks.paper import are_papers
from vllm_moe_prune.errors import PruneError

Phases = Literal["both", "prune", "merge"]


class EepMethod(WithBudget):
    """Evolutionary search."""

    name: Literal["eep"]
    preset: Preset = Field(default="fast", description=PRESET_HELP)


class SearchSection(Section):
    """What is not given is the preset's (docs/search.md has both presets' numbers)."""

    title = "EEP's search"

    phases: Phases = Field(default="both", description="prune, merge, or one after the other")
    evaluations: int | None = Field(
        default=None, ge=1, description="candidates that are evaluated; the preset's if not given"
    )
    prune_evaluations: int | None = Field(
        default=None, ge=1, description="of these, before merging begins"
    )
    initial: int | None = Field(default=None, ge=1, description="random candidates to begin with")
    children: int | None = Field(
        default=None, ge=1, description="candidates per generation: what replicas can share"
    )
    groups: str = Field(
        default="4", description="depth groups that share matrices: a number, or `layer`"
    )
    racing: bool | None = Field(
        default=None, description="drop a candidate as soon as it is statistically hopeless"
    )
    seeding: bool | None = Field(
        default=None, description="begin with the one-shot methods' maps beside random ones"
    )
    seed_criteria: str | None = Field(
        default=None,
        description="criteria whose maps the search also begins with: min-ean,max-rwn",
    )
    guard: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="no task may fall more than this below the base, e.g. 0.05",
    )
    finalists: int | None = Field(
        default=None,
        ge=1,
        description="best candidates that are re-ranked on the selection split; the preset's if "
        "not given",
    )
    selection_items: int = Field(
        default=200, ge=1, description="items of each task to re-rank them by"
    )

    @field_validator("groups", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return str(value) if type(value) is int else value  # a YAML file says `groups: 4`

    @model_validator(mode="after")
    def _words(self) -> Self:
        self.criteria  # noqa: B018  # refuses what is none
        return self

    @property
    def criteria(self) -> tuple[str, ...]:
        """Return the criteria whose maps the search begins with, with their directions.

        :raises ValueError: naming the word that is none
        """
        words = self.seed_criteria.split(",") if self.seed_criteria else ()
        return tuple(dict.fromkeys(criterion_word("seed-criteria", word) for word in words))

    def settings(self, method: EepMethod, num_layers: int) -> eep.EepSettings:
        """Return the search's numbers: the preset's, changed by what is given.

        :raises PruneError: if they do not fit together
        """
        return eep.settings_of(
            method.preset,
            phases=self.phases,
            num_groups=self.num_groups(num_layers),
            num_evaluations=self.evaluations,
            prune_until=self.prune_evaluations,
            num_initial=self.initial,
            children=self.children,
            finalists=self.finalists,
        )

    def num_groups(self, num_layers: int) -> int:
        """Return the number of depth groups.

        :raises PruneError: if `groups` is neither a positive number nor `layer`
        """
        if self.groups == "layer":
            return num_layers
        if self.groups.isdigit() and int(self.groups) > 0:
            return int(self.groups)
        raise PruneError(f"--groups {self.groups!r} is neither a number nor `layer`")


class EepRecipe(CompressRecipe):
    """Evolutionary search over maps."""

    method: EepMethod
    search: SearchSection = SearchSection()

    @model_validator(mode="after")
    def _slices(self) -> Self:
        if self.method.router == "sliced" and self.search.phases != "prune":
            raise ValueError(
                "--router sliced: merging mixes scores, for which a router is mapped: add "
                "--phases prune"
            )
        return self

    @model_validator(mode="after")
    def _asked_as_in_the_paper(self) -> Self:
        """Put EEP's own tasks as a chat, unless told otherwise: the paper asks chat models."""
        own = self.method.preset == "paper" and are_papers(self.data.task)
        if self.prompting.apply_chat_template is not None or not own:
            return self
        chat = self.prompting.model_copy(update={"apply_chat_template": True})
        return self.model_copy(update={"prompting": chat})

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
    def idle(self) -> dict[str, str]:
        """Return also what goes with another phase."""
        merges = self.search.phases == "merge" and self.search.prune_evaluations is not None
        return super().idle | ({"prune_evaluations": "a pruning phase"} if merges else {})

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
