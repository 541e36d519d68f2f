"""`SweepSettings`: which choices a sweep measures, and on what; the flags of `vmprune sweep`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from offline.build.mtp import MTP_HELP, MtpChoice
from offline.criteria.registry import Rule
from offline.maps.router_kind import ROUTER_HELP
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import validated

SPREADS = ("uniform", "budget", "sensitivity")
FATES = ("dropped", "substituted")
MERGES = ("output-similarity", "router-similarity")
ROUTERS = ("auto", "sliced", "mapped")
_WORDS: Mapping[str, tuple[str, ...]] = {
    "spreads": SPREADS,
    "fates": FATES,
    "merges": MERGES,
    "routers": ROUTERS,
}


class ChoiceSettings(BaseModel):
    """The choices: all combinations of these lists."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    criteria: str = Field(
        default="min-ean,min-reap,min-man,min-euf",
        description="criteria that choose what is kept, with commas",
    )
    ratios: str = Field(
        default="0.25,0.5,0.75", description="shares of the experts that are dropped, with commas"
    )
    spreads: str = Field(
        default="uniform,budget",
        description="the same share in every layer, or as many in all together, by importance "
        "(budget) or by what layers lose (sensitivity)",
    )
    sensitivity: str = Field(
        default="",
        description="for that: what `vmprune sensitivity` wrote, a folder for each criterion",
    )
    fates: str = Field(
        default="dropped",
        description="what becomes of experts that are not kept: dropped, or substituted by their "
        "mean outputs (what is built so is served by vLLM alone), with commas",
    )
    merges: str = Field(
        default="", description=f"also merge instead of dropping: {', '.join(MERGES)}"
    )
    top_ks: str = Field(
        default="", description="also with so many active experts per token, with commas"
    )
    routers: str = Field(default="auto", description=f"kinds of router, with commas; {ROUTER_HELP}")
    domains: str | None = Field(default=None, description="weights of the scored domains, as plan")
    mtp: MtpChoice | None = Field(default=None, description=MTP_HELP)

    @model_validator(mode="after")
    def _goes_by(self) -> Self:
        if bool(self.sensitivity) is not ("sensitivity" in words(self.spreads)):
            raise ValueError("--spreads sensitivity goes with --sensitivity, the folders")
        return self

    @field_validator(*_WORDS)
    @classmethod
    def _known(cls, text: str, info: Any) -> str:
        known = _WORDS[info.field_name]
        for word in words(text):
            if word not in known:
                raise ValueError(f"{word!r} is none of {', '.join(known)}")
        return text


class MeasureSettings(BaseModel):
    """On what the choices are measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    search_items: int = Field(
        default=200, ge=16, description="items of each task that choices race on"
    )
    test_items: int = Field(
        default=400, ge=8, description="held-out items of each task for the base and the front"
    )
    slack: float = Field(
        default=0.03,
        ge=0,
        description="a choice races on while it may be this much below the best of its size",
    )
    finalists: int = Field(
        default=2, ge=1, description="choices of each size that are measured again, at most"
    )
    search: int = Field(
        default=0,
        ge=0,
        description="also search in each size, from its best choices on, with so many candidates "
        "more (EEP, pruning only); 0 does not",
    )
    text: str | None = Field(
        default=None,
        description="plain text that the base and the front read: [NAME=]SOURCE[:DOCUMENTS],...; "
        "that of the gates if not given",
    )
    seed: int = Field(default=0, description="of documents, intervals and searches")


class SpeedSettings(BaseModel):
    """How tokens per second are measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    speed_rounds: int = Field(
        default=8,
        ge=0,
        description="times that each choice of the front generates, in turn with the base; "
        "0 measures no tokens/s",
    )
    speed_batch: int = Field(default=8, ge=1, description="answers that are generated together")
    speed_tokens: int = Field(default=32, ge=1, description="tokens of each answer")


class SweepSettings(ChoiceSettings, MeasureSettings, SpeedSettings):
    """All settings of a sweep but the model, its scores and the task."""

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> SweepSettings:
        """Take the flags that were given (not None).

        :raises PruneError: naming the flag that is wrong
        """
        given = {name: value for name, value in flags.items() if value is not None}
        return validated(given, cls, "settings")

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The criteria with their directions.

        :raises PruneError: if there is none of a name
        """
        return tuple(Rule.parse(word) for word in words(self.criteria))

    @property
    def dropped(self) -> tuple[float, ...]:
        """The shares that are dropped, the greatest first.

        :raises PruneError: if one is no share
        """
        found = []
        for word in words(self.ratios):
            try:
                share = float(word)
            except ValueError:
                share = -1.0
            if not 0 < share < 1:
                raise PruneError(f"--ratios: {word} is no share between 0 and 1")
            found.append(share)
        return tuple(sorted(set(found), reverse=True))

    @property
    def measured(self) -> tuple[str, ...]:
        """The folders with what layers lose."""
        return words(self.sensitivity)

    @property
    def active(self) -> tuple[int | None, ...]:
        """The numbers of active experts, the model's own (None) first.

        :raises PruneError: if one is no number
        """
        found: list[int | None] = [None]
        for word in words(self.top_ks):
            if not word.isdecimal() or not int(word):
                raise PruneError(f"--top-ks: {word!r} is no number of experts")
            found.append(int(word))
        return tuple(dict.fromkeys(found))


def words(text: str) -> tuple[str, ...]:
    """Return what stands between commas, once each."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
