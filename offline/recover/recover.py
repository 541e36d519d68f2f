"""`vmprune recover`: zero-shot, k-shot and after a supervised finetune, base and pruned alike.

base and model alike: finetune on lessons -> zero-shot and k-shot before, zero-shot after
-> OUT: the model as it was trained, with its map, the table and the page
With ``--distill`` the base is asked once what it expects of the text, which the model then learns.

Each number, and each trained checkpoint, is kept in ``OUT.run`` as soon as it is there: a run that
was killed continues when the same call is made again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from offline.build.card import card_fields, model_card
from offline.data.models import complete
from offline.recover.needs import check_recipe
from offline.recover.recipe import RecoverRecipe, SftSettings
from offline.results.compression import RESULT_FILE
from offline.results.recovery import RECOVERY_FILE, Recovery
from offline.runs.output import link, staged
from offline.runs.owned import MANIFEST
from offline.runs.owner import owned
from offline.runs.progress import Reporter
from offline.runs.resume import check_outputs, delete
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.provenance import write_atomic
from vllm_moe_prune.routing_map import RoutingMap
from vllm_moe_prune.tuning import Tuning

if TYPE_CHECKING:
    from offline.recover.session import Session

# What was found out about the checkpoint before it was trained: beside the one after, it would lie.
_NOT_KEPT = (RESULT_FILE, RECOVERY_FILE, "analysis.json", "check.json", "serving.json", MANIFEST)


def recover(
    recipe: RecoverRecipe,
    training: SftSettings,
    out: Path,
    *,
    reporter: Reporter,
    force: bool = False,
) -> Recovery:
    """Train a checkpoint on tasks or instructions and show what that and examples win back.

    :raises PruneError: for anything in the recipe or the checkpoints that cannot work, before any
        work; if what is trained does not fit into memory; or if another process works at ``out``
    """
    check_outputs(out, force=force, inputs=recipe.inputs)
    check_recipe(recipe, training)
    from offline.recover.session import Session

    with owned(out):
        check_outputs(out, force=force, inputs=recipe.inputs)  # another may just be done
        session = Session.begin(recipe, training, out, reporter, force=force)
        for _, folder in session.checkpoints.folders():
            complete(folder)
        subjects = list(session.checkpoints.folders())
        for subject, folder in subjects if recipe.distill is None else reversed(subjects):
            session.treat(subject, folder)
        result = session.result(out)
        _write(session, result, out, force=force)
    return result


def _write(session: Session, result: Recovery, out: Path, *, force: bool) -> None:
    """Put the trained checkpoint with its map and the evidence into place."""
    from offline.report.pages import draw

    tuned = session.tuned("model")
    with staged(out, force=force) as partial:
        for file in sorted(tuned.iterdir()):  # a plain checkpoint has no folders
            if file.name not in _NOT_KEPT:
                link(file, partial / file.name)
        if session.checkpoints.routing_map is not None:
            before = session.checkpoints.model
            _save_map(session.checkpoints.routing_map, session.tuning, partial, before)
        result.save(partial)
        draw(partial, out.name)
    delete(tuned)


def _save_map(routing_map: RoutingMap, tuning: Tuning, folder: Path, before: Checkpoint) -> None:
    """Write the map and the card; ``before`` is the checkpoint as it was."""
    version = max(routing_map.schema_version, 2)
    update = {"tuned": (*routing_map.tuned, tuning), "schema_version": version}
    tuned = routing_map.model_copy(update=update)  # with its matrices
    tuned.save(folder)
    inherited, exact = card_fields(before.folder), before.layout.slices
    card = model_card(routing_map.base.name, tuned, tuned.form, inherited, slices=exact)
    write_atomic(folder / "README.md", card)  # what is there is a name of another file's bytes
