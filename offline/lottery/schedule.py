"""The schedule of MoE Lottery Subnetworks: which round drops how many experts, and tunes how long.

Source: arXiv 2504.05586, section 3. A round estimates the experts on the model as it is now, drops
some of every layer and finetunes the rest on plain text. Dropping everything in one round without
a finetune is the paper's one-shot baseline, several rounds without one its iterative baseline.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from offline.criteria.registry import Rule
from offline.finetune.settings import FinetuneSettings
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError, one_line

RANDOM = "random"  # the paper's control: no criterion, a seeded choice in every round
LotteryPreset = Literal["fast", "paper"]


class LotterySettings(BaseModel):
    """The numbers of a lottery."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    criterion: str = "min-ean"
    rounds: int | None = Field(default=None, ge=1)
    drop_per_round: int = Field(default=1, ge=1, description="of every layer; without `rounds`")
    finetune: bool = True
    round_tokens: int = Field(default=50_000, ge=1, description="tokens of the first finetune")
    token_factor: float = Field(default=2.0, gt=0, description="from a round to the next")
    token_cap: int | None = Field(default=400_000, ge=1, description="most tokens of a round")
    length: int = Field(default=512, ge=2, description="tokens of every sequence")
    tuning: FinetuneSettings = FinetuneSettings()

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.criterion != RANDOM:
            try:
                Rule.parse(self.criterion)
            except PruneError as error:
                raise ValueError(f"--criterion: {error.message}, nor is it {RANDOM}") from None
        return self

    @property
    def needs_gradients(self) -> bool:
        """Whether scoring has to go backwards as well."""
        return self.criterion != RANDOM and Rule.parse(self.criterion).criterion.needs_gradients


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """What one round does: numbered from 1, leaves ``keep`` experts per layer."""

    number: int
    experts: int  # per layer, before the round
    keep: int
    tokens: int  # of the finetune; 0 where there is none
    skip: int  # sequences that the rounds before have trained on

    @property
    def name(self) -> str:
        """Name of the round's folder."""
        return f"round-{self.number:02d}"


# Ours finds its numbers on models that train on a CPU (docs/lottery.md); the paper's are those it
# gives, with the cap that agrees with its own totals and the sequence length that it does not give.
PRESETS: Mapping[LotteryPreset, LotterySettings] = {
    "fast": LotterySettings(tuning=FinetuneSettings(learning_rate=1e-3)),
    "paper": LotterySettings(
        round_tokens=200_000,
        token_cap=1_100_000,
        length=2048,
        tuning=FinetuneSettings(learning_rate=1e-6, warmup=0.0, batch=8),
    ),
}


def settings_of(preset: LotteryPreset, **changes: object) -> LotterySettings:
    """Return a preset changed by what is not None; names of the finetune's settings go there.

    :raises PruneError: naming the setting that is out of range
    """
    given = {name: value for name, value in changes.items() if value is not None}
    tuning = {
        name: given.pop(name) for name in list(given) if name in FinetuneSettings.model_fields
    }
    chosen = PRESETS[preset]
    try:
        tuned = FinetuneSettings.model_validate(chosen.tuning.model_dump() | tuning)
        return LotterySettings.model_validate(
            chosen.model_dump(exclude={"tuning"}) | given | {"tuning": tuned}
        )
    except ValidationError as error:
        raise PruneError(f"settings: {one_line(error)}") from None


def schedule(
    settings: LotterySettings, experts: int, keep: int, step: int = 1
) -> tuple[RoundPlan, ...]:
    """Return the rounds that take every layer from ``experts`` to ``keep``.

    What does not divide evenly falls to the first rounds, in which there is most to choose from.

    :param step: experts go so many at a time: one in each group of a group-limited router
    :raises PruneError: if nothing is dropped, or there are more rounds than experts to drop
    """
    dropped = experts - keep
    if dropped < 1:
        raise PruneError(
            f"--keep {keep}: every layer has {experts} experts, so no round would drop one",
            hint="keep fewer; `vmprune recover` trains a model without dropping",
        )
    steps = dropped // step
    rounds = settings.rounds or math.ceil(steps / max(1, settings.drop_per_round // step))
    if rounds > steps:
        at_once = f", {step} at a time" if step > 1 else ""
        raise PruneError(
            f"--rounds {rounds}: only {dropped} experts of a layer are to be dropped{at_once}",
            hint=f"--rounds {steps} or fewer",
        )
    plans: list[RoundPlan] = []
    before, spent = experts, 0
    for number in range(1, rounds + 1):
        after = experts - step * math.ceil(steps * number / rounds)
        tokens = tokens_of(settings, number)
        plans.append(RoundPlan(number, before, after, tokens, spent))
        before, spent = after, spent + math.ceil(tokens / settings.length)
    return tuple(plans)


def uniform_counts(base: Checkpoint) -> int:
    """Return E of a base that has the same in every layer: only such a one is plain when pruned.

    :raises PruneError: naming two layers that differ
    """
    counts = base.expert_counts()
    first = min(counts)
    for layer, count in counts.items():
        if count != counts[first]:
            raise PruneError(
                f"layers {first} and {layer} have {counts[first]} and {count} experts; a lottery "
                "trains plain checkpoints, which have the same number in every layer"
            )
    return counts[first]


def tokens_of(settings: LotterySettings, number: int) -> int:
    """Return the tokens of a round's finetune, numbered from 1; 0 without one."""
    if not settings.finetune:
        return 0
    grown = settings.round_tokens * settings.token_factor ** (number - 1)
    return max(1, round(min(grown, settings.token_cap or grown)))


def rng_of(seed: int, number: int) -> random.Random:
    """Return what a round draws random experts with: the same whether or not others were run."""
    return random.Random(f"lottery {seed} round {number}")
