"""EEP's numbers: `EepSettings`, the released ones (`paper`) and ours (`fast`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_moe_prune.errors import PruneError, one_line

Phases = Literal["prune", "merge", "both"]
Preset = Literal["paper", "fast"]


class EepSettings(BaseModel):
    """The search's numbers; the defaults are the released ones, fitness being in 0..1.

    Not taken over: `add_prob`, which the released search never reads, and its seed (11450), which
    is the caller's. `skip_known` is the one default that is not theirs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    phases: Phases = Field(default="both", description="prune only, merge only, or both")
    num_groups: int = Field(default=4, ge=1, description="depth groups that share matrices")
    num_initial: int = Field(default=30, ge=1, description="individuals of the first generation")
    prune_until: int = Field(default=100, ge=1, description="individuals when merging begins")
    num_evaluations: int = Field(default=400, ge=1, description="individuals in all")
    children: int = Field(default=1, ge=1, description="individuals of a later generation")
    expert_group_probability: float = Field(
        default=0.25, gt=0, le=1, description="a group's W_EM is active in a step"
    )
    router_group_probability: float = Field(
        default=0.25, ge=0, le=1, description="a group's W_RM is active in a step"
    )
    swap_probability: float = Field(
        default=0.15, gt=0, le=1, description="pruning: a row of an active W_EM moves"
    )
    noise_probability: float = Field(
        default=0.25, gt=0, le=1, description="merging: an element of an active matrix changes"
    )
    noise_scale: float = Field(default=0.065, gt=0, description="merging: by this times N(0, 1)")
    mutation_threshold: float = Field(
        default=0.03, ge=0, description="a parent's fitness may be this much below the best"
    )
    mutation_rank: int = Field(
        default=0, ge=0, description="but so many of the best are always possible parents"
    )
    crossover_probability: float = Field(
        default=0.3, ge=0, le=1, description="a child has two parents"
    )
    crossover_phases: Literal["merge", "both"] = Field(
        default="merge", description="phases with crossover"
    )
    crossover_threshold: float = Field(default=0.01, ge=0, description="as for mutation")
    crossover_rank: int = Field(default=6, ge=0, description="as for mutation")
    from_front_probability: float = Field(
        default=0.6, ge=0, le=1, description="a row or matrix comes from the first of two parents"
    )
    align_rows: bool = Field(
        default=False, description="rows of the same expert meet in a crossover"
    )
    normalise_probability: float = Field(
        default=0.1, ge=0, le=1, description="the rows of all W_EM are divided by their sums"
    )
    move_probability: float = Field(
        default=0.3, ge=0, le=1, description="global budget: an expert moves to another group"
    )
    skip_known: bool = Field(
        default=True, description="a child that was evaluated before is drawn again"
    )
    finalists: int = Field(
        default=20, ge=1, description="best individuals that are re-ranked on unseen items"
    )


# `fast` is for fewer evaluations and for engines that share a generation. Its numbers were chosen
# on random MoE networks (tests/maps/landscape.py). On 40 more, which also decided `prune_until`,
# its best of 160 candidates is better than that of `paper` on unseen items, by 1.0 points (standard
# error 0.5) with 2 of 8 experts and 1.4 (0.4) with 4; python -m benchmarks.phases.
PRESETS: Mapping[Preset, EepSettings] = {
    "paper": EepSettings(),
    "fast": EepSettings(
        num_initial=16,
        prune_until=136,
        num_evaluations=160,
        children=8,
        mutation_threshold=0.015,
        mutation_rank=4,
        crossover_phases="both",
        align_rows=True,
        finalists=5,
    ),
}


def settings_of(preset: Preset, **changes: Any) -> EepSettings:
    """Return a preset with some fields changed; None leaves a field as it is.

    Where ``num_evaluations`` is changed, ``num_initial`` and ``prune_until`` keep their shares of
    it unless they are given too, and one candidate at least merges, if there are two. With
    ``phases`` prune, all of it is pruning.

    :raises PruneError: naming the field that is unknown or out of range
    """
    base = PRESETS[preset].model_dump()
    given = {name: value for name, value in changes.items() if value is not None}
    evaluations = given.get("num_evaluations", base["num_evaluations"])
    if isinstance(evaluations, int):
        for name in ("num_initial", "prune_until"):
            base[name] = max(1, round(base[name] * evaluations / base["num_evaluations"]))
        base["prune_until"] = max(1, min(base["prune_until"], evaluations - 1))
        if given.get("phases") == "prune":
            base["prune_until"] = evaluations
    try:
        return EepSettings.model_validate(base | given)
    except ValidationError as error:
        raise PruneError(f"eep: {one_line(error)}") from None
