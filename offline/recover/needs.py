"""What a recovery needs, told from headers and settings: imports nothing heavy."""

from __future__ import annotations

from offline.engines.needs import check_evaluable, check_tokenizer
from offline.finetune.finetune import check_possible
from offline.finetune.where import Where
from offline.recover.checkpoints import Checkpoints
from offline.recover.recipe import RecoverRecipe, SftSettings
from offline.runs.device import check_device


def check_recipe(recipe: RecoverRecipe, training: SftSettings) -> None:
    """Refuse what cannot work, before torch is imported.

    :raises PruneError: naming the task, the checkpoint, the file or the number that is wrong
    """
    check_device(recipe.device)
    recipe.trained, recipe.measured  # noqa: B018  # refuse what is none
    recipe.check_teacher()
    checkpoints = Checkpoints.open(recipe)
    trained = [checkpoints.model]
    if checkpoints.base is not None and recipe.distill is None:
        trained.append(checkpoints.base)
    for checkpoint in trained:
        check_tokenizer(checkpoint.folder)
        check_possible(checkpoint, training, where=where_of(recipe))
    if checkpoints.base is not None and recipe.distill is not None:
        engine = recipe.teacher_engine or "transformers"
        check_evaluable(
            checkpoints.base.folder, None, allow_other=False, engine=engine, dtype=recipe.dtype
        )


def where_of(recipe: RecoverRecipe) -> Where:
    """Return where the finetunes run."""
    return Where(
        device=recipe.device,
        processes=recipe.processes,
        accelerate_config=recipe.accelerate_config,
        save_every=recipe.save_every,
    )
