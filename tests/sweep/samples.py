"""Scores of a tiny base, and the settings that sweeps of it have in common."""

from __future__ import annotations

from pathlib import Path

from offline.calibration.scores import Scores
from offline.cli.progress import Silence
from offline.engines.opened import EngineName
from offline.fitness.objective import Objective
from offline.fitness.text_quality import ReadingEngine
from offline.results.sweep import SweepResult
from offline.sweep.choices import choices_of
from offline.sweep.settings import SweepSettings
from offline.sweep.sweep import Sweep
from offline.tasks.task import Split
from tests.criteria.scores import scores_of
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.provenance import DataIdentity, Provenance

SOURCE = DataIdentity(name="scores", count=1, sha256="sha256:0")
# One choice of each kind: as many experts merged, dropped and substituted, each with fewer active.
KINDS: dict[str, object] = {
    "criteria": "min-ean",
    "ratios": "0.5",
    "spreads": "uniform",
    "fates": "dropped,substituted",
    "merges": "output-similarity",
    "top_ks": "1",
    "search_items": 16,
    "test_items": 12,
    "speed_rounds": 2,
    "speed_batch": 3,
    "speed_tokens": 4,
}
NAMES = {
    f"{what}{top_k}"
    for what in ("merge-output-50", "min-ean-50", "min-ean-50-substituted")
    for top_k in ("", "-top-1")
}


def made_up_scores(base: Path) -> Scores:
    """Return scores of random tokens for a tiny Mixtral."""
    checkpoint = Checkpoint.open(base)
    layers = tuple(checkpoint.expert_counts())
    base_of = checkpoint.fingerprint()
    return scores_of(layers, base=base_of, gradients=False, experts=8, hidden=64)


def flags_of(settings: dict[str, object]) -> list[str]:
    """Return settings as the flags of `vmprune sweep`."""
    return [
        word for n, value in settings.items() for word in (f"--{n.replace('_', '-')}", str(value))
    ]


def swept_in(
    engine: ReadingEngine, name: EngineName, base: Path, task: Path, folder: Path
) -> SweepResult:
    """Return what a sweep of all kinds finds in an engine that is there already.

    All are measured on held-out items, too.
    """
    checkpoint, settings = Checkpoint.open(base), SweepSettings.of({**KINDS, "slack": 1})
    choices = choices_of(settings, made_up_scores(base), checkpoint, SOURCE)
    items: dict[Split, int | None] = {"search": 16, "test": 12}
    objective = Objective.parse(str(task), items=items)
    folder.mkdir()
    sweep = Sweep(checkpoint, choices, objective, settings, folder, Silence(), name)
    return sweep.run(engine, None, Provenance(method="sweep"), folder)
