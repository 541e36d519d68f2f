"""`Gates`: the limits that a file such as gates.yaml sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from offline.data.yaml_file import read_yaml
from vllm_moe_prune.errors import PruneError, one_line

Bound = Literal["at most", "at least"]


@dataclass(frozen=True, slots=True)
class Measure:
    """A thing that gates limit.

    :param bound: on which side of a limit is well
    :param usual: the name that a number without one stands for
    :param made_by: the command that measures it
    :param names: those that can be limited; None for those of tasks or domains
    """

    bound: Bound
    usual: str
    made_by: str
    names: tuple[str, ...] | None = None


EACH, WORST = "each", "worst"
_RATES = ("rate", "more")
_CHECK = "vmprune check --probes"
_TEXT = "vmprune eval --perplexity, or `text:` in the gates of compress and sweep"
MEASURES: Mapping[str, Measure] = {
    "accuracy_drop": Measure("at most", EACH, "vmprune compress or sweep"),
    "perplexity_ratio": Measure("at most", EACH, _TEXT),
    "agreement": Measure("at least", EACH, _TEXT.replace("perplexity", "agreement")),
    "divergence": Measure("at most", EACH, _TEXT.replace("perplexity", "agreement")),
    "loops": Measure("at most", "more", _CHECK, _RATES),
    "unfinished": Measure("at most", "more", _CHECK, _RATES),
    "thinking_open": Measure("at most", "more", _CHECK, _RATES),
    "empty": Measure("at most", "more", _CHECK, _RATES),
    "tool_call_unparsed": Measure("at most", "more", _CHECK, _RATES),
    "no_tool_call": Measure("at most", "more", _CHECK, _RATES),
    "code_unparsed": Measure("at most", "more", _CHECK, _RATES),
    "length": Measure("at most", "ratio", _CHECK, ("ratio",)),
    "length_least": Measure("at least", "ratio", _CHECK, ("ratio",)),
}


def _named(value: object) -> object:
    """Take a number for that of the usual name, which is put in once the measure is known."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return {"": float(value)}


Finite = Annotated[float, Field(allow_inf_nan=False)]
Limits = Annotated[
    dict[str, Finite],
    BeforeValidator(_named),
    Field(json_schema_extra={"anyOf": [{"type": "number"}, {"type": "object"}]}),
]


class Gates(BaseModel):
    """Limits by measure: a number, or a number for each name (docs/gates.md)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str | None = Field(
        default=None, description="what perplexity and agreement read, as of eval --perplexity"
    )
    accuracy_drop: Limits | None = Field(default=None, description="base - pruned, share of items")
    perplexity_ratio: Limits | None = Field(default=None, description="pruned / base")
    agreement: Limits | None = Field(default=None, description="least share of equal first tokens")
    divergence: Limits | None = Field(default=None, description="KL(base || pruned), nats a token")
    loops: Limits | None = Field(default=None, description="share of answers that loop")
    unfinished: Limits | None = Field(default=None, description="share that does not end")
    thinking_open: Limits | None = Field(default=None, description="share that thinks on")
    empty: Limits | None = Field(default=None, description="share that says nothing")
    tool_call_unparsed: Limits | None = Field(default=None, description="share of tool calls")
    no_tool_call: Limits | None = Field(default=None, description="share without one")
    code_unparsed: Limits | None = Field(default=None, description="share that is no Python")
    length: Limits | None = Field(default=None, description="mean tokens, pruned / base")
    length_least: Limits | None = Field(default=None, description="the same, at least")

    @model_validator(mode="after")
    def _check(self) -> Self:
        limits = self.limits
        if not limits:
            raise ValueError(f"no gate: there are {', '.join(MEASURES)}")
        for measure, entries in limits.items():
            names = MEASURES[measure].names
            for name in entries:
                if names is not None and name not in names:
                    raise ValueError(f"{measure}: {name} is none of {', '.join(names)}")
            if not entries:
                raise ValueError(f"{measure} has no limit")
        return self

    @property
    def limits(self) -> dict[str, dict[str, float]]:
        """Return measure -> name -> limit, in the order of `MEASURES`."""
        found: dict[str, dict[str, float]] = {}
        for measure, facts in MEASURES.items():
            entries: dict[str, float] | None = getattr(self, measure)
            if entries is not None:
                found[measure] = {name or facts.usual: limit for name, limit in entries.items()}
        return found

    @property
    def needs_text(self) -> bool:
        """Whether a gate is about plain text that is named here."""
        asked = ("perplexity_ratio", "agreement", "divergence")
        return self.text is not None and any(measure in self.limits for measure in asked)

    @property
    def needs_agreement(self) -> bool:
        """Whether next tokens are compared."""
        return self.needs_text and ("agreement" in self.limits or "divergence" in self.limits)


def read_gates(file: Path) -> Gates:
    """Read a file of gates.

    :raises PruneError: naming the file and what is wrong in it
    """
    entries = read_yaml(file, "gates")
    try:
        return Gates.model_validate(entries)
    except ValidationError as error:
        raise PruneError(
            f"gates {file}: {one_line(error)}", hint="docs/gates.md has all of them"
        ) from None
