"""The rounds that a lottery's recipe asks for, checked by the base's header; imports no torch."""

from __future__ import annotations

from dataclasses import replace

from offline.calibration.needs import check_length
from offline.compress.recipe.lottery import LotteryRecipe
from offline.compress.recipe.recipe import CompressRecipe
from offline.engines.needs import check_vllm
from offline.finetune.where import Where
from offline.lottery.schedule import RoundPlan, schedule, uniform_counts
from offline.maps.map_space import Space
from vllm_moe_prune.checkpoint import Checkpoint


def check_lottery(recipe: CompressRecipe, space: Space, base: Checkpoint) -> None:
    """Refuse rounds, or a finetune, that cannot be.

    :raises PruneError: naming what does not fit together
    """
    assert isinstance(recipe, LotteryRecipe)
    settings = recipe.settings_of_rounds()
    plans = plans_of(recipe, space, base)
    check_length(base, settings.length)
    if settings.finetune:
        from offline.finetune.finetune import check_possible  # which needs what training does

        first = left(base, plans[0].keep)
        check_possible(first, settings.tuning, where=where_of(recipe))
    if recipe.distills:
        recipe.lottery.check_teacher()
        if recipe.lottery.teacher_engine == "vllm":
            check_vllm()


def plans_of(recipe: LotteryRecipe, space: Space, base: Checkpoint) -> tuple[RoundPlan, ...]:
    """Return the rounds.

    :raises PruneError: if the layers differ, or there is nothing to drop in a round
    """
    keep = recipe.method.keep
    assert keep is not None  # the recipe allows no budget, and a ratio has been counted out
    experts = uniform_counts(base)
    return schedule(recipe.settings_of_rounds(), experts, keep, space.shape.num_groups)


def where_of(recipe: LotteryRecipe) -> Where:
    """Return where the finetunes run."""
    return Where(
        device=recipe.engine.device,
        processes=recipe.lottery.processes,
        accelerate_config=recipe.lottery.accelerate_config,
        save_every=recipe.lottery.save_every,
    )


def left(base: Checkpoint, keep: int) -> Checkpoint:
    """Return the header of what a round leaves: which experts stay plays no part in its size."""
    stored = {
        name: stored
        for name, stored in base.stored.items()
        if (role := base.layout.classify(name)) is None or role.expert is None or role.expert < keep
    }
    return replace(base, stored=stored)
