"""What a sweep is asked for, opened and checked before the model is loaded; and its folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from offline.calibration.scores import Scores, check_scores, identity_of
from offline.data.models import complete
from offline.engines.needs import check_evaluable
from offline.engines.opened import Where, in_engine
from offline.fitness.documents import TextAsked, parse_texts
from offline.fitness.objective import Objective
from offline.gates.gates import Gates
from offline.results.sensitivity import Sensitivity
from offline.results.sweep import SweepResult
from offline.runs.device import check_device
from offline.runs.output import staged
from offline.runs.owner import owned
from offline.runs.progress import Reporter
from offline.runs.resume import check_outputs, run_folder
from offline.sweep.choices import Choices, choices_of
from offline.sweep.settings import SpeedSettings, SweepSettings
from offline.sweep.sweep import Say, Sweep
from offline.tasks.needs import check_items
from offline.tasks.splits import data_identity
from offline.tasks.task import Split
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.provenance import DataIdentity, Provenance, write_atomic

_SPLITS: tuple[Split, ...] = ("search", "test")


@dataclass(frozen=True, slots=True)
class Asked:
    """Everything that a sweep goes by."""

    base: Checkpoint
    planned_by: tuple[DataIdentity, ...]  # the scores, and what layers lose
    choices: Choices
    objective: Objective
    text: TextAsked | None
    gates: Gates | None
    settings: SweepSettings
    where: Where

    @classmethod
    def of(
        cls,
        model: Path,
        scores: Path,
        task: str,
        settings: SweepSettings,
        gates: Gates | None,
        where: Where,
    ) -> Asked:
        """Open and check; plans every choice.

        :raises PruneError: for anything that cannot work
        """
        items = dict(zip(_SPLITS, (settings.search_items, settings.test_items), strict=True))
        objective = Objective.parse(task, items=items)
        text = _text(settings, gates)
        base = Checkpoint.open(model)
        read = Scores.load(scores)
        check_scores(read, base.fingerprint())
        source = identity_of(read, scores)
        if settings.search:
            read.shape.check_complete()
        measured = {name: Sensitivity.load(Path(name)) for name in settings.measured}
        choices = choices_of(settings, read, base, source, measured)
        if where.engine == "transformers":
            check_device(where.device)
        in_it: dict[str, Any] = {"engine": where.engine, "dtype": where.dtype}
        can: Any = partial(check_evaluable, model, allow_other=False, **in_it)
        choices = choices.that(can)
        for entry in objective.tasks:  # last: data may have to be fetched
            for split in _SPLITS:
                check_items(entry.task, split)
        planned_by = (source, *(one.identity for one in measured.values()))
        return cls(base, planned_by, choices, objective, text, gates, settings, where)

    def sweep(self, folder: Path, reporter: Reporter, say: Say = lambda line: None) -> Sweep:
        """Return the sweep that goes on with what is in a folder."""
        return Sweep(
            self.base,
            self.choices,
            self.objective,
            self.settings,
            folder,
            reporter,
            self.where.engine,
            self.text,
            say,
        )

    @property
    def data(self) -> tuple[DataIdentity, ...]:
        """Which items, scores and losses of layers decide."""
        items = self.objective.items
        return (
            *(
                data_identity(entry.task, split, items.get(split))
                for entry in self.objective.tasks
                for split in _SPLITS
            ),
            *self.planned_by,
        )

    def identity(self) -> dict[str, Any]:
        """Return all that measurements depend on: one of another identity is another run."""
        where, other = self.where, {*SpeedSettings.model_fields}
        if not self.settings.search:  # as sweeps of before that do not know it
            other.add("search")
        return {
            "recipe": {
                **self.settings.model_dump(mode="json", exclude=other),
                "text": None if self.text is None else [repr(part) for part in self.text.parts],
                "engine": where.engine,
                "dtype": where.dtype,
            },
            "base": self.base.fingerprint().model_dump(exclude={"name"}),
            "data": [data.model_dump() for data in self.data],
        }


def run_sweep(asked: Asked, out: Path, *, force: bool, reporter: Reporter, say: Say) -> SweepResult:
    """Measure, and write ``out``: sweep.json, sweep.html and maps/NAME of every choice.

    One that was killed goes on when the same call is made again, with its log in ``OUT.run``.

    :raises PruneError: as `Asked.of` and `Sweep.run`, or if another process works at ``out``
    """
    with owned(out):
        check_outputs(out, force=force)  # another may just be done
        return _run(asked, out, force=force, reporter=reporter, say=say)


def _run(asked: Asked, out: Path, *, force: bool, reporter: Reporter, say: Say) -> SweepResult:
    folder = run_folder(out, asked.identity(), force=force)
    complete(asked.base.folder)
    sweep = asked.sweep(folder, reporter, say)
    made = Provenance.now(
        "sweep",
        settings={
            **asked.settings.model_dump(mode="json", exclude_none=True),
            "engine": asked.where.engine,
            "dtype": asked.where.dtype,
        },
        seed=asked.settings.seed,
        data=asked.data,
    )
    reporter.stage("loading the model", 1)
    with in_engine(asked.base.folder, asked.where) as engine:
        result = sweep.run(engine, asked.gates, made, out)
    from offline.report.sweep_page import SWEEP_PAGE, render

    with staged(out, force=force) as work:
        result.save(work)
        write_atomic(work / SWEEP_PAGE, render(result))
        for choice in sweep.choices.found:
            choice.routing_map.save(work / "maps" / choice.name)
    return result


def _text(settings: SweepSettings, gates: Gates | None) -> TextAsked | None:
    """Return the text to read: that of the flag, or that of the gates."""
    given = settings.text or (gates.text if gates is not None and gates.needs_text else None)
    if given is None:
        return None
    parts = parse_texts("--text", given)
    return TextAsked(parts, frozenset(part.name for part in parts), seed=settings.seed)
