"""`CompressRecipe`: the one schema behind `vmprune compress`'s flags and its recipe files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, JsonValue, model_validator

from offline.compress.recipe.method import MethodSection
from offline.compress.recipe.sections import (
    BaseSection,
    DataSection,
    EngineSection,
    MeasureSection,
    OutputSection,
    PromptingSection,
    Section,
)
from offline.methods.baselines import ONE_SHOT
from offline.tasks.catalog import Split


class CompressRecipe(BaseModel):
    """Everything that decides the outcome of a compression, by sections.

    Each kind of method has its own recipe: with the sections that it reads and no others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: BaseSection
    method: MethodSection
    data: DataSection = DataSection()
    prompting: PromptingSection = PromptingSection()
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

    @property
    def idle(self) -> dict[str, str]:
        """Return the settings that say something and change nothing: flag -> what they go with."""
        found = {}
        if self.engine.name != "vllm" and self.engine.tensor_parallel > 1:
            found["tensor_parallel"] = "--engine vllm"
        for name in ("gpu_memory", "cuda_graphs"):
            if self.engine.name != "vllm" and getattr(self.engine, name) is not None:
                found[name] = "--engine vllm"
        if self.engine.name == "vllm" and self.engine.device != "auto":
            found["device"] = "--engine transformers; vLLM takes the GPUs that it sees"
        if self.engine.replicas == 1 and self.engine.ray_address != "local":
            found["ray_address"] = "--replicas"
        for name in ("scores", "calibration", "domains", "pack", "chat_template"):
            given = getattr(self.data, name) != DataSection.model_fields[name].default
            if given and not self.reads_text:
                found[name] = "a criterion: --method oneshot, or min-NAME in --compare"
        if self.method.least > 1 and self.method.total is None:
            found["floor"] = "--budget"
        return found

    @property
    def reads_text(self) -> bool:
        """Whether calibration text, or scores made of it, decide anything."""
        return bool(self.scored_by)

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
