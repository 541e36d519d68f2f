"""What rounds and finetunes save: perplexity one-shot, iterative and as a lottery.

    python -m benchmarks.lottery --bed testbed --model testbed --out lottery

Every criterion, and experts dropped at random, at several ratios. One lottery that goes on to the
highest ratio passes the others on its way; one-shot is a run of its own for each. The base is
scored and measured once, and what was measured is not measured again: the same command continues.
Perplexity is of held-out text. Prints one Markdown table per ratio; the last line of stdout is one
JSON object.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import click

from benchmarks.criteria import Bed, texts_of
from offline.calibration.calibrate import calibrate
from offline.calibration.corpus import parse_calibration
from offline.cli.console import bars
from offline.device import pick_device, pick_dtype
from offline.finetune.finetune import Where
from offline.lottery.loaded import Loaded, compute_dtype
from offline.lottery.lottery import Lottery, delete, uniform_counts
from offline.lottery.measure import measure
from offline.lottery.record import Measured, RoundRecord, read_measured, read_round
from offline.lottery.text import LotteryText, load_text
from offline.methods.lottery import RANDOM, LotterySettings, schedule, settings_of
from offline.run import Reporter
from offline.staging import staged
from vllm_moe_prune.checkpoint import Checkpoint

Way = Literal["one-shot", "iterative", "lottery"]
WAYS: tuple[Way, ...] = get_args(Way)


@click.command(context_settings={"show_default": True})
@click.option("--bed", type=click.Choice(get_args(Bed)), required=True, help="whose text")
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--criteria", default="min-ean,min-ege,random")
@click.option("--ways", default=",".join(WAYS))
@click.option("--ratios", default="0.25,0.5,0.75", help="shares of the experts dropped")
@click.option("--round-tokens", default=50_000, help="of the first finetune")
@click.option("--token-factor", default=2.0)
@click.option("--token-cap", default=400_000, help="of any finetune")
@click.option("--learning-rate", default=None, type=float, help="the preset's if not given")
@click.option("--trainable", default="all")
@click.option("--sequences", default=16, help="of each domain, to score on")
@click.option("--heldout", default=8, help="sequences of each domain to measure on")
@click.option("--length", default=512, help="tokens of a sequence")
@click.option("--random-seeds", default=5, help="random choices to take the mean of")
@click.option("--random-lotteries", default=1, help="of these, how many are finetuned")
@click.option("--seed", default=0)
@click.option("--keep-weights/--no-keep-weights", help="keep the last checkpoint of every run")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder to work in")
def main(bed: Bed, model: Path, criteria: str, ways: str, ratios: str, **more: Any) -> None:
    """Run what is not there yet and print the tables."""
    words, chosen = criteria.split(","), [way for way in WAYS if way in ways.split(",")]
    dropped = sorted(float(ratio) for ratio in ratios.split(","))
    with bars() as reporter:
        bench = Bench.begin(bed, model, words, dropped, more, reporter)
        found = {
            (word, way, ratio): result
            for word in words
            for way in chosen
            for ratio, result in bench.results(word, way).items()
        }
    for ratio in dropped:
        click.echo(f"\n{_table(bench.base, ratio, found)}")
    click.echo("\n" + json.dumps(_report(bench, found)))


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
            seeds = self.more["random_lotteries" if way == "lottery" else "random_seeds"]
        runs = [self._run(criterion, way, self.more["seed"] + seed) for seed in range(seeds)]
        return {ratio: _mean([run[ratio] for run in runs]) for ratio in self.ratios}

    def _run(self, criterion: str, way: Way, seed: int) -> dict[float, Measured]:
        settings = _settings(self.more, criterion, finetune=way == "lottery")
        keeps = {ratio: _keep(self.experts, ratio) for ratio in self.ratios}
        if way == "one-shot":
            once = settings.model_copy(update={"rounds": 1})
            return {
                ratio: self._records(f"{criterion}-one-shot-{keep}-{seed}", once, keep, seed)[0]
                .result
                for ratio, keep in keeps.items()
            }  # fmt: skip
        last = min(keeps.values())
        records = self._records(f"{criterion}-{way}-{seed}", settings, last, seed)
        by_count = {len(next(iter(one.kept.values()))): one.result for one in records}
        return {ratio: by_count[keep] for ratio, keep in keeps.items()}

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
        played = lottery.run()
        if not self.more["keep_weights"]:
            delete(played.checkpoint)
        return played.rounds

    def _score(self, gradients: bool) -> None:
        """Score the base, on which every run's first round decides."""
        folder: Path = self.more["out"] / "scores"
        if not folder.exists():
            engine = self.loaded.open(self.checkpoint.folder)
            made = calibrate(engine, self.text.score, gradients=gradients, reporter=self.reporter)
            with staged(folder) as partial:
                made.save(partial)


def _settings(more: dict[str, Any], criterion: str, *, finetune: bool) -> LotterySettings:
    names = ("round_tokens", "token_factor", "token_cap", "learning_rate", "trainable", "length")
    given = {name: more[name] for name in names}
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


Found = dict[tuple[str, Way, float], Measured]


def _table(base: Measured, ratio: float, found: Found) -> str:
    """Return a Markdown table of perplexities and of the load's coefficient of variation."""
    head = ["", "all", *base.losses, "load CV"]
    rows = [head, ["---"] * len(head), _row("base", base)]
    for (word, way, at), one in found.items():
        if at == ratio:
            rows.append(_row(f"{word}, {way}", one))
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"**{ratio:.0%} of the experts dropped: held-out perplexity**\n\n{lines}"


def _row(name: str, one: Measured) -> list[str]:
    numbers = [one.perplexity, *one.perplexities.values()]
    return [name, *(f"{number:.2f}" for number in numbers), f"{one.cv:.2f}"]


def _report(bench: Bench, found: Found) -> dict[str, Any]:
    def excess(key: tuple[str, Way, float]) -> float:
        return found[key].loss - bench.base.loss

    words = dict.fromkeys(word for word, _, _ in found)
    at = 0.5 if 0.5 in bench.ratios else max(bench.ratios)
    both = [w for w in words if {(w, "lottery", at), (w, "one-shot", at)} <= found.keys()]
    first = both[0] if both else None
    value = None
    if first is not None:
        value = round(excess((first, "lottery", at)) / excess((first, "one-shot", at)), 3)
    return {
        "name": f"excess_log_perplexity_of_lottery_over_one_shot_{first}",
        "value": value,
        "unit": f"ratio, {at:.0%} of the experts dropped",
        "detail": {
            "base": round(bench.base.perplexity, 3),
            **{
                f"{word} {way} {ratio:g}": {
                    "perplexity": round(one.perplexity, 3),
                    "excess": round(excess((word, way, ratio)), 4),
                    "load_cv": round(one.cv, 3),
                }
                for (word, way, ratio), one in found.items()
            },
        },
    }


if __name__ == "__main__":
    main()
