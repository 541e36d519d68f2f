"""`vmprune compress`: from a base checkpoint and a task to a pruned checkpoint with its evidence.

base -> engine -> method (search split) -> finalists (selection split) -> routing map, saved
     -> held-out split for base, random, frequency and the chosen map -> build -> result
"""

from __future__ import annotations

from pathlib import Path

from offline.build.build import Finish, build, plan_build
from offline.compress.engines import EngineFactory, load_engine, open_engines
from offline.compress.held_out import measure_quality
from offline.compress.methods import METHODS
from offline.compress.observations import Observations
from offline.compress.prepared import Prepared
from offline.compress.recipe.recipe import CompressRecipe
from offline.compress.scores import analysis_beside
from offline.compress.size import sized
from offline.compress.summary import planned_size, result_of
from offline.compress.text import text_beside
from offline.data.models import complete
from offline.fitness.documents import TextAsked
from offline.results.compression import RESULT_FILE, RunResult
from offline.runs.output import check_room
from offline.runs.owner import owned
from offline.runs.progress import Reporter
from offline.runs.resume import check_outputs, run_folder


def compress(
    recipe: CompressRecipe,
    out: Path,
    *,
    make_engine: EngineFactory = load_engine,
    reporter: Reporter,
    force: bool = False,
    texts: TextAsked | None = None,
    finish: Finish | None = None,
) -> RunResult:
    """Choose experts, measure the choice on held-out items and build the pruned checkpoint.

    A run that was killed continues when the same call is made again; it keeps its log in
    ``OUT.run`` beside ``out``.

    :param texts: plain text on which the choice is measured beside the base, into
        text_quality.json; not with replicas, nor of a lottery
    :param finish: is given the folder with all that belongs into it, before that becomes ``out``
    :raises PruneError: for anything in the recipe or the base that cannot work, before any work, or
        if another process works at ``out``
    """
    check_outputs(out, force=force, inputs=recipe.inputs)
    with owned(out):
        check_outputs(out, force=force, inputs=recipe.inputs)  # another may just be done
        return _compress(
            recipe, out, make_engine, reporter, force=force, texts=texts, finish=finish
        )


def _compress(
    recipe: CompressRecipe,
    out: Path,
    make_engine: EngineFactory,
    reporter: Reporter,
    *,
    force: bool,
    texts: TextAsked | None,
    finish: Finish | None,
) -> RunResult:
    prepared = Prepared.of(sized(recipe)[0])
    check_room(out, prepared.least_bytes)
    complete(prepared.base.folder)
    prepared = prepared.identified()
    method = METHODS[recipe.method.name]
    if method.choose is None:
        from offline.compress.lottery import compress_lottery

        return compress_lottery(prepared, out, make_engine, reporter, force=force, finish=finish)
    folder = run_folder(out, prepared.identity(), force=force, upgrade=prepared.upgrade)
    reporter.stage("loading the model", 1)
    with open_engines(prepared.recipe, make_engine) as engines:
        reporter.step()
        run = prepared.begin(engines, folder, reporter)
        with run.timed("search"):
            seen = Observations.of(run)
            found = method.choose(run, seen)
            chosen = list(found.values())[-1]
            chosen.save(folder)
        with run.timed("held-out"):
            quality = measure_quality(run, found, seen)
            beside = {} if texts is None else text_beside(run, chosen, texts)
    plan = plan_build(run.base, chosen, mtp=recipe.output.mtp)
    result = result_of(run, out, chosen, seen.tokens, quality, planned_size(chosen, plan))
    reporter.stage("writing the checkpoint", plan.num_bytes)
    beside |= {RESULT_FILE: result.to_json(), **analysis_beside(run, chosen)}
    build(
        run.base,
        chosen,
        out,
        force=force,
        mtp=recipe.output.mtp,
        progress=reporter.step,
        beside=beside,
        finish=finish,
    )
    return result
