"""`Prepared`: what a recipe speaks of, before the model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from offline.build.mtp import check_choice, decoder_tensors
from offline.build.quantised import check_unquantised
from offline.build.whole import check_whole_base
from offline.compress.methods import METHODS
from offline.compress.recipe.eep import EepRecipe
from offline.compress.recipe.reading import upgraded
from offline.compress.recipe.recipe import CompressRecipe
from offline.compress.run import Run
from offline.compress.scores import check_scored, check_text
from offline.engines.base import Engine
from offline.engines.needs import (
    check_engine,
    check_ray,
    check_routable,
    check_tokenizer,
    check_vllm,
    check_whole,
)
from offline.fitness.assessor import Assessor
from offline.fitness.log import EvaluationLog
from offline.fitness.objective import Objective
from offline.fitness.racing import RacingSettings
from offline.lint.tensors import lint_tensors
from offline.maps.map_space import Space
from offline.maps.moe_shape import MoeShape
from offline.runs.device import check_device, pick_device, pick_dtype
from offline.runs.progress import Reporter
from offline.tasks.needs import check_items, check_written
from offline.tasks.prompting_settings import check_chat
from offline.tasks.splits import data_identity
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub import origin
from vllm_moe_prune.provenance import DataIdentity, Provenance
from vllm_moe_prune.quantisation import settings_beside

_LOG = logging.getLogger(__name__)
_WITHOUT = "vmprune score --engine vllm, then plan and build"  # where nothing can be searched
_FEW = 100  # items: a share is known to 10 points, 95 of 100 times


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a recipe speaks of, opened and checked before the model is loaded.

    The device and the dtype of ``recipe`` are those that will be computed on and in.
    """

    recipe: CompressRecipe
    base: Checkpoint
    space: Space
    objective: Objective
    provenance: Provenance

    @classmethod
    def of(cls, recipe: CompressRecipe) -> Prepared:
        """Open and check: first all that is told without torch.

        :raises PruneError: for anything in the recipe or the base that cannot work
        """
        _check_engine(recipe)
        base, space = check_model(recipe)
        beside = settings_beside(base.folder)
        for finding in lint_tensors(decoder_tensors(base), base.layout, base.config, beside):
            _LOG.warning("%s", finding)
        data = recipe.data
        objective = Objective.parse(
            data.task,
            measure=data.fitness,
            guard=recipe.guard,
            items=recipe.items,
            library=replace(data.library, prompting=recipe.prompting.prompting),
        )
        check_written(entry.task for entry in objective.tasks)
        scores = check_scored(recipe, base)
        check_tokenizer(recipe.base.model)
        decided = _items(recipe, objective)
        check_text(recipe)
        recipe = _placed(recipe)
        made = _provenance(recipe, base, space, (*decided, *([scores] if scores else ())))
        return cls(recipe, base, space, objective, made)

    @property
    def least_bytes(self) -> int:
        """Bytes that the pruned weights will have, or a few more: gates lose rows as well."""
        experts = self.base.expert_bytes()
        kept, whole = self.space.even_counts(), self.space.num_experts
        share = sum(kept.values()) / sum(whole.values())
        return self.base.num_bytes - experts + round(experts * share)

    def identified(self) -> Prepared:
        """Return the same with a base whose weights are here, and so have a digest."""
        shape = replace(self.space.shape, base=self.base.fingerprint())
        return replace(self, space=replace(self.space, shape=shape))

    def identity(self) -> dict[str, Any]:
        """Return all that results depend on: a run with another identity is another run."""
        return {
            "recipe": {k: v for k, v in self.recipe.settings().items() if k != "mtp"},
            "base": self.space.shape.base.model_dump(exclude={"name"}),
            "data": [data.model_dump() for data in self.provenance.data],
        }

    @staticmethod
    def upgrade(identity: dict[str, Any]) -> dict[str, Any]:
        """Return an identity that version 0.1 wrote as this one writes it, if it is one."""
        before = identity.get("recipe")
        try:
            settings = upgraded(before) if isinstance(before, dict) else None
        except PruneError:
            settings = None
        if settings is None:
            return identity
        return {**identity, "recipe": {k: v for k, v in settings.items() if k != "mtp"}}

    def begin(self, engines: Sequence[Engine], folder: Path, reporter: Reporter) -> Run:
        """Start the run, continuing what is in the folder's log."""
        slack = self.recipe.slack(len(self.space.layers))
        assessor = Assessor(
            engines,
            self.objective,
            EvaluationLog(folder / "evaluations.jsonl"),
            racing=None if slack is None else RacingSettings(slack=slack),
            on_done=lambda one: reporter.step(note=f"{one.fitness:.3f}"),
        )
        return Run(
            self.recipe,
            self.base,
            self.space,
            self.objective,
            engines,
            assessor,
            reporter,
            self.provenance,
            folder,
        )


def check_model(recipe: CompressRecipe) -> tuple[Checkpoint, Space]:
    """Refuse a base that the engine cannot hold or the method cannot prune; imports no torch.

    :raises PruneError: naming what can be done instead
    """
    base, method = Checkpoint.open(recipe.base.model), recipe.method
    check_whole(recipe.base.model)
    check_whole_base(base)
    check_chat(recipe.prompting, recipe.base.model)
    check_choice(base, recipe.output.mtp, method.keep)
    _check_held(recipe, base)
    space = Space.of(
        MoeShape.of(base),
        method.keep,
        method.active,
        budget=method.total,
        floor=method.least,
        router=method.router,
        substitutes=method.substitutes,
    )
    _check_recorded(recipe, space)
    space.shape.check_complete()
    METHODS[method.name].check(recipe, space, base)
    return base, space


def _check_held(recipe: CompressRecipe, base: Checkpoint) -> None:
    """Refuse a base that the engine cannot hold, or whose routing it cannot change."""
    engine, layout = recipe.engine, base.layout
    if METHODS[recipe.method.name].choose is None:  # a lottery, which no other engine plays
        check_unquantised(base.folder)
        try:
            check_routable(layout, layout.num_groups(base.config))
        except PruneError as error:
            raise PruneError(error.message, hint=_WITHOUT) from None
        return
    merges = isinstance(recipe, EepRecipe) and recipe.search.phases != "prune"
    check_engine(
        base.folder,
        engine.name,
        routed=True,
        dtype=engine.dtype,
        more=" --phases prune" if merges else "",
        otherwise=_WITHOUT,
    )


def _check_engine(recipe: CompressRecipe) -> None:
    """Refuse an engine that this machine has not, or that has no such device."""
    engine = recipe.engine
    if engine.name == "vllm":
        check_vllm()
    else:
        check_device(engine.device)
    if engine.replicas > 1:
        check_ray(engine.ray_address)


def _check_recorded(recipe: CompressRecipe, space: Space) -> None:
    """Refuse more active experts than a recorded model has columns for."""
    most, own = max(space.top_k.values()), max(space.shape.top_k.values())
    if recipe.engine.cuda_graphs and most > own:
        raise PruneError(
            f"--cuda-graphs: --top-k {most} is more than the model's own {own}",
            hint="leave --cuda-graphs out",
        )


def _placed(recipe: CompressRecipe) -> CompressRecipe:
    """Return the recipe with a device and a dtype: what is written down is what was computed in."""
    device = pick_device(recipe.engine.device)
    dtype = pick_dtype(recipe.engine.dtype, device)
    engine = recipe.engine.model_copy(update={"device": device, "dtype": dtype})
    return recipe.model_copy(update={"engine": engine})


def _items(recipe: CompressRecipe, objective: Objective) -> list[DataIdentity]:
    """Return which items decide; those that only measure must be there as well."""
    for entry in objective.tasks:
        check_items(entry.task, "test")
    data = [
        data_identity(entry.task, split, objective.items.get(split))
        for entry in objective.tasks
        for split in METHODS[recipe.method.name].decided_on
    ]
    _warn_of_few(objective, data)
    return data


def _provenance(
    recipe: CompressRecipe, base: Checkpoint, space: Space, data: tuple[DataIdentity, ...]
) -> Provenance:
    """Say how a run's map is made: settings, seed, base, and the items and scores that decide."""
    settings = recipe.told(len(space.layers)) | origin(base.folder)
    settings.pop("seed", None)  # has a place of its own
    return Provenance.now(
        recipe.method.name,
        settings=settings,
        seed=recipe.method.seed,
        data=data,
    )


def _warn_of_few(objective: Objective, data: Sequence[DataIdentity]) -> None:
    """Say it where the data of lm-eval's tasks have so few items that luck decides."""
    own = {entry.task.name for entry in objective.tasks if entry.task.lm_eval is not None}
    counts: dict[str, int] = {}
    for one in data:
        if one.name in own:
            split = one.split.partition(" ")[0]
            counts[split] = counts.get(split, 0) + one.count
    for split, count in counts.items():
        if count < _FEW:
            _LOG.warning(
                "%s: only %d items for the %s split: a share of right answers is known to "
                "%.0f points at best", ", ".join(sorted(own)), count, split, 98 / count**0.5,
            )  # fmt: skip
