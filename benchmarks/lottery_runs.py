"""The runs behind `benchmarks.lottery`: they share a model, its text, its scores and a folder."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from benchmarks.criteria import Bed, texts_of
from offline.calibration.calibrate import calibrate
from offline.calibration.corpus import parse_calibration
from offline.finetune.examples import packed
from offline.finetune.finetune import finetune as train
from offline.finetune.where import Where
from offline.lottery.loaded import Loaded, compute_dtype
from offline.lottery.lottery import Lottery
from offline.lottery.measure import measure
from offline.lottery.play import delete, play
from offline.lottery.schedule import (
    RANDOM,
    LotterySettings,
    RoundPlan,
    schedule,
    settings_of,
    uniform_counts,
)
from offline.lottery.text import LotteryText, load_text
from offline.results.lottery import Measured, RoundRecord, read_measured, read_round
from offline.runs.device import pick_device, pick_dtype
from offline.runs.output import staged
from offline.runs.progress import Reporter
from vllm_moe_prune.checkpoint import Checkpoint

Way = Literal["one-shot", "iterative", "one-shot-tuned", "lottery"]
WAYS: tuple[Way, ...] = get_args(Way)
TRAINED: tuple[Way, ...] = ("one-shot-tuned", "lottery")


@dataclass(frozen=True, slots=True)
class Bench:
    """Runs that share a model, its text, its scores and a folder."""

    checkpoint: Checkpoint
    text: LotteryText
    base: Measured
    experts: int
    ratios: Sequence[float]
    more: dict[str, Any]
    loaded: Loaded
    reporter: Reporter

    @classmethod
    def begin(
        cls,
        bed: Bed,
        model: Path,
        criteria: Sequence[str],
        ratios: Sequence[float],
        more: dict[str, Any],
        reporter: Reporter,
    ) -> Bench:
        """Read the text, and score and measure the base unless that was done."""
        checkpoint, device = Checkpoint.open(model), pick_device("auto")
        loaded = Loaded(device, compute_dtype(pick_dtype("auto", device), checkpoint))
        more["out"].mkdir(parents=True, exist_ok=True)
        experts = uniform_counts(checkpoint)
        settings = _settings(more, "min-ean", finetune=True)
        keep = _keep(experts, max(ratios))
        tokens = sum(plan.tokens for plan in schedule(settings, experts, keep))
        text = _text(bed, loaded.open(model).tokenizer, more, tokens)
        bench = cls(
            checkpoint,
            text,
            _base(loaded, checkpoint, text, more["out"]),
            experts,
            ratios,
            more,
            loaded,
            reporter,
        )
        bench._score(any(_settings(more, w, finetune=False).needs_gradients for w in criteria))
        return bench

    def results(self, criterion: str, way: Way) -> dict[float, Measured]:
        """Return ratio -> the model at it; of random ones the mean loss over seeds."""
        seeds = 1
        if criterion == RANDOM:
            seeds = self.more["random_lotteries" if way in TRAINED else "random_seeds"]
        runs = [self._run(criterion, way, self.more["seed"] + seed) for seed in range(seeds)]
        return {ratio: _mean([run[ratio] for run in runs]) for ratio in self.ratios}

    def _run(self, criterion: str, way: Way, seed: int) -> dict[float, Measured]:
        settings = _settings(self.more, criterion, finetune=way in TRAINED)
        keeps = {ratio: _keep(self.experts, ratio) for ratio in self.ratios}
        if way in ("one-shot", "one-shot-tuned"):
            runs = {
                ratio: self._once(criterion, way, settings, k, seed) for ratio, k in keeps.items()
            }
            return {ratio: one.result for ratio, one in runs.items()}
        last = min(keeps.values())
        records = self._records(f"{criterion}-{way}-{seed}", settings, last, seed)
        by_count = {len(next(iter(one.kept.values()))): one.result for one in records}
        return {ratio: by_count[keep] for ratio, keep in keeps.items()}

    def _once(
        self, criterion: str, way: Way, settings: LotterySettings, keep: int, seed: int
    ) -> RoundRecord:
        """Drop all at once; a finetune is as long as those of a lottery to there together."""
        tokens = sum(plan.tokens for plan in schedule(settings, self.experts, keep))
        update = {"rounds": 1, "round_tokens": tokens, "token_cap": tokens}
        name = f"{criterion}-{way}-{keep}-{seed}"
        return self._records(name, settings.model_copy(update=update), keep, seed)[0]

    def _records(
        self, name: str, settings: LotterySettings, keep: int, seed: int
    ) -> tuple[RoundRecord, ...]:
        plans = schedule(settings, self.experts, keep)
        folder = self.more["out"] / name
        done = [read_round(folder / plan.name) for plan in plans]
        if all(done):
            return tuple(one for one in done if one is not None)
        folder.mkdir(exist_ok=True)
        self.base.save(folder / "base.json")
        lottery = Lottery(
            base=self.checkpoint,
            settings=settings,
            plans=plans,
            text=self.text,
            folder=folder,
            seed=seed,
            loaded=self.loaded,
            where=Where(device=self.loaded.device),
            reporter=self.reporter,
            scores=self.more["out"] / "scores",
        )
        played = play(lottery)
        if not self.more["keep_weights"]:
            delete(played.checkpoint)
        return played.rounds

    def control(self) -> dict[float, Measured]:
        """Return ratio -> the base after the finetunes of a lottery to there, nothing dropped."""
        settings = _settings(self.more, RANDOM, finetune=True)
        plans = schedule(settings, self.experts, _keep(self.experts, max(self.ratios)))
        ids = {layer: range(count) for layer, count in self.checkpoint.expert_counts().items()}
        folder, current = self.more["out"] / "control", self.checkpoint.folder
        folder.mkdir(exist_ok=True)
        found: dict[float, Measured] = {}
        for plan in plans:
            file, out = folder / f"{plan.name}.json", folder / plan.name
            measured = read_measured(file)
            if measured is None:
                self._train(plan, settings, current, out)
                measured = measure(self.loaded.open(out), self.text.held_out, ids)
                measured.save(file)
            if current != self.checkpoint.folder:
                delete(current)
            current = out
            found |= {r: measured for r in self.ratios if _keep(self.experts, r) == plan.keep}
        delete(current)
        return found

    def _train(self, plan: RoundPlan, settings: LotterySettings, model: Path, out: Path) -> None:
        if out.exists():
            return
        seed = self.more["seed"]
        self.loaded.release()
        train(
            model,
            packed(self.text.tune, tokens=plan.tokens, seed=seed, skip=plan.skip),
            settings.tuning,
            out,
            seed=seed + plan.number,
            where=Where(device=self.loaded.device),
            reporter=self.reporter,
            dtype="float32",
        )

    def _score(self, gradients: bool) -> None:
        """Score the base, on which every run's first round decides."""
        folder: Path = self.more["out"] / "scores"
        if not folder.exists():
            engine = self.loaded.open(self.checkpoint.folder)
            made = calibrate(engine, self.text.score, gradients=gradients, reporter=self.reporter)
            with staged(folder) as partial:
                made.save(partial)


def _settings(more: dict[str, Any], criterion: str, *, finetune: bool) -> LotterySettings:
    names = ("round_tokens", "token_factor", "token_cap", "learning_rate", "length")
    tuning = ("trainable", "batch", "micro_batch", "mixed_precision")
    given = {name: more[name] for name in (*names, *tuning)}
    return settings_of("fast", criterion=criterion, finetune=finetune, **given)


def _keep(experts: int, ratio: float) -> int:
    return experts - math.floor(ratio * experts + 1e-9)


def _base(loaded: Loaded, checkpoint: Checkpoint, text: LotteryText, out: Path) -> Measured:
    found = read_measured(out / "base.json")
    if found is None:
        ids = {layer: range(count) for layer, count in checkpoint.expert_counts().items()}
        found = measure(loaded.open(checkpoint.folder), text.held_out, ids)
        found.save(out / "base.json")
    return found


def _text(bed: Bed, tokenizer: Any, more: dict[str, Any], tune_tokens: int) -> LotteryText:
    """Deal out the bed's training text; its held-out documents are what is measured on."""
    train, held_out = texts_of(bed)
    folder = more["out"] / "text"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    specs = []
    for name, documents in train.items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        specs.append(f"{name}={file}:{more['sequences']}")
    return load_text(
        parse_calibration(",".join(specs)),
        tokenizer,
        length=more["length"],
        held_out=more["heldout"],
        tune_tokens=tune_tokens,
        seed=more["seed"],
        apart=held_out,
    )


def _mean(found: Sequence[Measured]) -> Measured:
    """Return the mean losses; the load is that of the first."""
    losses = {name: statistics.fmean(one.losses[name] for one in found) for name in found[0].losses}
    return Measured(losses=losses, load=found[0].load)
