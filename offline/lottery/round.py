"""One round of a lottery: score, drop, measure, finetune, measure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from offline.build.build import build, plan_build
from offline.calibration.calibrate import calibrate
from offline.calibration.scores import Scores, check_scores, tokens_seen
from offline.finetune.examples import packed
from offline.finetune.finetune import Finetuned, finetune
from offline.finetune.parts import parts_of
from offline.lottery.lottery import Lottery
from offline.lottery.measure import measure
from offline.lottery.schedule import RANDOM, RoundPlan, rng_of
from offline.maps.genome import Kept
from offline.maps.map_space import Space
from offline.maps.moe_shape import MoeShape
from offline.methods.baselines import random_kept
from offline.methods.keep_last import keep_by_criterion
from offline.results.lottery import (
    Measured,
    RoundFinetune,
    RoundRecord,
    kept_ids,
    read_measured,
)
from offline.runs.output import staged
from offline.runs.progress import timed
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.composition import compose
from vllm_moe_prune.provenance import DataIdentity, Provenance, write_atomic
from vllm_moe_prune.reading import read_object
from vllm_moe_prune.routing_map import RoutingMap

_SECONDS_FILE = "seconds.json"


@dataclass(frozen=True, slots=True)
class Round:
    """A round, from the model in ``current`` on; ``before`` is what the rounds so far have done."""

    lottery: Lottery
    plan: RoundPlan
    current: Path
    before: RoutingMap | None

    @property
    def folder(self) -> Path:
        """Where the round keeps everything."""
        return self.lottery.folder / self.plan.name

    @property
    def pruned(self) -> Path:
        """The model without the experts that this round drops."""
        return self.folder / "pruned"

    @property
    def tuned(self) -> Path:
        """The same, finetuned."""
        return self.folder / "tuned"

    @property
    def result(self) -> Path:
        """The model that the round ends with."""
        return self.tuned if self.plan.tokens else self.pruned

    def play(self) -> RoundRecord:
        """Do what is not there yet and write `round.json`.

        :raises PruneError: if the model or the text does not allow it
        """
        self.folder.mkdir(exist_ok=True)
        own = self._map()
        if not self.pruned.exists():
            self._prune(own)
        composed = self.composed()
        kept = kept_ids({e.layer: e.experts.kept or () for e in composed.layers})
        dropped = self._measured("pruned", self.pruned, kept)
        trained, tuned = None, None
        if self.plan.tokens:
            if not self.tuned.exists():
                self._tune()
            trained = _finetune_of(self.tuned)
            tuned = self._measured("tuned", self.tuned, kept)
        record = RoundRecord(
            number=self.plan.number,
            criterion=self.lottery.settings.criterion,
            kept=kept,
            map_digest=own.digest(),
            dropped=dropped,
            trained=trained,
            tuned=tuned,
            seconds=self._seconds(),
        )
        record.save(self.folder)
        return record

    def composed(self) -> RoutingMap:
        """Return what this round and those before it do to the base, as one map."""
        own = RoutingMap.load(self.folder / "map")
        return own if self.before is None else compose(self.before, own)

    def _map(self) -> RoutingMap:
        """Return what the round drops of the model that it began with, decided now or before."""
        folder = self.folder / "map"
        if not folder.exists():
            scores = None if self.lottery.settings.criterion == RANDOM else self._scores()
            made = self._decided(scores)
            assert made.form == "plain"
            with staged(folder) as partial:
                made.save(partial)
        return RoutingMap.load(folder)

    def _scores(self) -> Scores:
        """Return the scores of the model that the round began with."""
        given = self.lottery.scores if self.before is None else None
        folder = given or self.folder / "scores"
        if not folder.exists():
            with self._timed("score"):
                made = calibrate(
                    self.lottery.loaded.open(self.current),
                    self.lottery.text.score,
                    gradients=self.lottery.settings.needs_gradients,
                    reporter=self.lottery.reporter,
                )
                with staged(folder) as partial:
                    made.save(partial)
        scores = Scores.load(folder)
        check_scores(scores, Checkpoint.open(self.current).fingerprint())
        return scores

    def _decided(self, scores: Scores | None) -> RoutingMap:
        """Choose what stays. Rows of the gate go with their experts whether or not the model
        renormalises: that is what the paper deletes, and what the finetune then repairs.
        """
        lottery, shape = self.lottery, MoeShape.of(Checkpoint.open(self.current))
        space = Space.of(shape, self.plan.keep, router="sliced")
        settings: dict[str, JsonValue] = {
            "round": self.plan.number,
            "criterion": lottery.settings.criterion,
            "keep": self.plan.keep,
            "domains": None if lottery.blend is None else dict(lottery.blend),
        }
        data: tuple[DataIdentity, ...] = ()
        kept: Mapping[int, Kept]
        if scores is None:
            kept = random_kept(space, rng_of(lottery.seed, self.plan.number))
        else:
            evidence, data = scores.evidence(lottery.blend), scores.provenance.data
            kept = keep_by_criterion(space, evidence, lottery.settings.criterion)
        made = Provenance.now("lottery round", settings=settings, seed=lottery.seed, data=data)
        seen = None if scores is None else tokens_seen(scores, lottery.blend)
        return space.routing_map(kept, made, seen)

    def _prune(self, own: RoutingMap) -> None:
        checkpoint = Checkpoint.open(self.current)
        num_bytes = plan_build(checkpoint, own, mtp="drop").num_bytes  # as the recipe says
        self.lottery.reporter.stage(f"{self._title}: dropping experts", num_bytes)
        with self._timed("drop"):
            build(checkpoint, own, self.pruned, mtp="drop", progress=self.lottery.reporter.step)

    def _tune(self) -> None:
        settings, seed = self.lottery.settings, self.lottery.seed
        examples = packed(
            self.lottery.text.tune, tokens=self.plan.tokens, seed=seed, skip=self.plan.skip
        )
        teacher = self.lottery.teacher
        if teacher is not None:
            teacher = teacher.after(self.plan.skip * (settings.length - 1))
        self.lottery.loaded.release()
        self._say_what_is_trained()
        with self._timed("finetune"):
            finetune(
                self.pruned,
                examples,
                settings.tuning,
                self.tuned,
                seed=seed + self.plan.number,
                where=self.lottery.where,
                reporter=self.lottery.reporter,
                dtype="float32",
                teacher=teacher,
            )

    def _say_what_is_trained(self) -> None:
        tuning = self.lottery.settings.tuning
        parts = parts_of(Checkpoint.open(self.pruned), tuning)
        trained, total = sum(p.trained for p in parts), sum(p.parameters for p in parts)
        size = sum(part.trained_bytes for part in parts) / 2**20
        title = (
            f"{self._title}: training {tuning.trainable}, {trained:,} numbers ({size:.1f} MiB) "
            f"for {total:,} weights"
        )
        self.lottery.reporter.stage(title, 1)
        self.lottery.reporter.step()

    def _measured(
        self, name: str, checkpoint: Path, ids: Mapping[int, tuple[int, ...]]
    ) -> Measured:
        file = self.folder / f"{name}.json"
        found = read_measured(file)
        if found is None:
            self.lottery.reporter.stage(f"{self._title}: measuring on held-out text", 1)
            with self._timed("measure"):
                found = measure(
                    self.lottery.loaded.open(checkpoint), self.lottery.text.held_out, ids
                )
            found.save(file)
            self.lottery.reporter.step(note=f"perplexity {found.perplexity:.2f}")
        return found

    @property
    def _title(self) -> str:
        return f"round {self.plan.number} of {len(self.lottery.plans)}"

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Add the block's time to what is kept of the round, over all runs that worked on it."""
        seconds = self._seconds()
        with timed(seconds, phase):
            yield
        seconds[phase] = round(seconds[phase], 3)
        write_atomic(self.folder / _SECONDS_FILE, json.dumps(seconds))

    def _seconds(self) -> dict[str, float]:
        file = self.folder / _SECONDS_FILE
        return read_object(file) if file.exists() else {}


def _finetune_of(checkpoint: Path) -> RoundFinetune:
    """Return what a finetune says of itself in its checkpoint."""
    told = Finetuned.load(checkpoint)
    return RoundFinetune(
        tuning=told.tuning,
        first_loss=told.losses[0],
        last_loss=told.losses[-1],
        peak_bytes=told.peak_bytes,
        trained_bytes=told.trained_bytes,
    )
