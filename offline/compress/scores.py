"""The scores that a compression's criteria go by: given, or made once and kept in its folder."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from offline.analysis.analyse import analyse
from offline.calibration.blend import parse_blend
from offline.calibration.corpus import text_settings, text_used
from offline.calibration.needs import check_length
from offline.calibration.scores import Scores, check_scores, identity_of
from offline.compress.recipe.recipe import CompressRecipe
from offline.compress.recipe.sections import DataSection
from offline.compress.run import Run
from offline.criteria.registry import Rule
from offline.results.analysis import ANALYSIS_FILE
from offline.runs.output import staged
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import DataIdentity, Provenance
from vllm_moe_prune.routing_map import RoutingMap

if TYPE_CHECKING:
    from offline.calibration.corpus import Domain

_FOLDER = "scores"


def check_scored(recipe: CompressRecipe, base: Checkpoint) -> DataIdentity | None:
    """Refuse scores, text or domains that cannot work, before any work.

    :returns: which scores the recipe gives; None if they are still to be made, or not needed
    :raises PruneError: naming what is wrong
    """
    words = recipe.scored_by
    if not words:
        return None
    if recipe.data.scores is None:
        from offline.calibration.corpus import DEFAULT_LENGTH, parse_calibration

        parts = parse_calibration(recipe.data.calibration)
        names = {part.name for part in parts}
        if unknown := sorted(set(blend_of(recipe) or ()) - names):
            raise PruneError(
                f"--domains: {unknown[0]} is not in --calibration",
                hint=f"it has {', '.join(sorted(names))}",
            )
        if recipe.criteria:  # for which they are made in `_made`
            check_length(base, max(part.length or DEFAULT_LENGTH for part in parts))
        return None
    scores = Scores.load(recipe.data.scores)
    check_scores(scores, base.fingerprint())
    for evidence in scores.evidence(blend_of(recipe)).values():
        for word in words:
            Rule.parse(word).order(evidence)
    return identity_of(scores, recipe.data.scores)


def check_text(recipe: CompressRecipe) -> None:
    """Refuse calibration text of which there is too little: an hour later the run would miss it.

    :raises PruneError: as `load_domains`
    """
    if recipe.criteria and recipe.data.scores is None:
        _domains(recipe.base.model, recipe.data, recipe.method.seed)


@functools.lru_cache(maxsize=1)  # what was read to be checked is what is scored on
def _domains(model: Path, data: DataSection, seed: int) -> tuple[Domain, ...]:
    from transformers import AutoTokenizer

    from offline.calibration.corpus import load_domains, parse_calibration

    return load_domains(
        parse_calibration(data.calibration),
        AutoTokenizer.from_pretrained(model, local_files_only=True),
        pack=data.pack,
        chat_template=data.chat_template or "auto",
        seed=seed,
    )


def blend_of(recipe: CompressRecipe) -> dict[str, float] | None:
    """Return domain -> weight.

    :raises PruneError: naming the weight that is wrong
    """
    return None if recipe.data.domains is None else parse_blend(recipe.data.domains)


def scores_of(run: Run) -> Scores:
    """Return the scores that the recipe gives, or those of the run: made now if it has none.

    :raises PruneError: if they are of another base, or text cannot be had
    """
    folder = run.recipe.data.scores or run.folder / _FOLDER
    if not folder.exists():
        made = _made(run)
        with staged(folder) as partial:
            made.save(partial)
    scores = Scores.load(folder)
    check_scores(scores, run.space.shape.base)
    run.text.update(text_used(scores.provenance))
    return scores


def analysis_beside(run: Run, chosen: RoutingMap) -> dict[str, str]:
    """Return the analysis that the report shows, as a file's name and content; none unscored.

    :param chosen: the map that is built
    """
    if not run.recipe.criteria:
        return {}
    words, domains = run.recipe.criteria, blend_of(run.recipe)
    found = analyse(scores_of(run), domains=domains, routing_map=chosen, criteria=words)
    return {ANALYSIS_FILE: found.to_json()}


def _made(run: Run) -> Scores:
    from offline.calibration.calibrate import calibrate
    from offline.calibration.corpus import uses_of
    from offline.engines.local.transformers import TransformersEngine

    engine, recipe = run.engines[0], run.recipe
    assert isinstance(engine, TransformersEngine)  # the recipe allows no other
    engine.apply(None)
    gradients = any(Rule.parse(word).criterion.needs_gradients for word in recipe.criteria)
    run.reporter.stage("reading calibration text", 1)
    domains = _domains(recipe.base.model, recipe.data, recipe.method.seed)
    for name, use in uses_of(domains).items():
        run.reporter.step(note=f"{name}: {use.told}")
    provenance = Provenance.now(
        "score",
        settings=text_settings(domains),
        data=tuple(domain.identity for domain in domains),
    )
    return calibrate(
        engine, domains, gradients=gradients, reporter=run.reporter, provenance=provenance
    )
