"""Runs and measures what `benchmarks.evidence` compares; what was measured is not done again."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.criteria import Bed, texts_of
from benchmarks.evidence_methods import Method
from offline.build.build import plan_build
from offline.cli.main import cli
from offline.engines.local.transformers import TransformersEngine
from offline.fitness.documents import LISTED, DomainText, TextAsked, load_texts, parse_texts
from offline.fitness.text_quality import Readings, qualities, read_texts
from offline.results.estimate import Estimate, worst
from offline.results.sweep import SWEEP_FILE, SweepResult
from offline.results.text_quality import DomainQuality
from offline.runs.device import pick_device, pick_dtype
from offline.tasks.catalog import get_task
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.routing_map import RoutingMap


@dataclass(frozen=True, slots=True)
class Found:
    """What one model does on held-out items and documents, and its size."""

    experts: int
    num_bytes: int
    tasks: dict[str, Estimate]
    domains: tuple[DomainQuality, ...]
    of: str = ""  # the choice that a sweep made

    @property
    def accuracy(self) -> float:
        """Mean over the tasks."""
        return statistics.fmean(one.value for one in self.tasks.values())

    @property
    def perplexity(self) -> float:
        """Its ratio to the base's: geometric mean over the domains."""
        return statistics.geometric_mean(d.ratio.value for d in self.domains if d.ratio)

    @property
    def worst(self) -> Estimate:
        """The ratio of the worst domain."""
        return worst([d.ratio for d in self.domains if d.ratio is not None])

    @property
    def same(self) -> float:
        """Share of places where the base's likeliest token is the model's; mean over domains."""
        return statistics.fmean(d.same_first.value for d in self.domains if d.same_first)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "experts": self.experts,
            "num_bytes": self.num_bytes,
            "of": self.of,
            "tasks": {name: one.model_dump() for name, one in self.tasks.items()},
            "domains": [one.model_dump() for one in self.domains],
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Found:
        """Rebuild what ``to_json`` gave."""
        tasks = {name: Estimate(**one) for name, one in fields["tasks"].items()}
        domains = tuple(DomainQuality.model_validate(one) for one in fields["domains"])
        return cls(fields["experts"], fields["num_bytes"], tasks, domains, fields["of"])


@dataclass(slots=True)
class Bench:
    """One base with the text and the tasks that its smaller models are measured on."""

    bed: Bed
    model: Path
    out: Path
    settings: Mapping[str, Any]
    engine: TransformersEngine = field(init=False)
    domains: tuple[DomainText, ...] = field(init=False)
    base: Readings = field(init=False)
    names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.engine = _opened(self.model)
        reader = self.engine.reader
        asked = TextAsked(parse_texts("text", self._text("held-out", self.settings["documents"])))
        self.domains = load_texts(asked, reader.tokenizer, reader.prefix_token_id)
        self.names = frozenset(domain.name for domain in self.domains)
        self.engine.apply(None)
        self.base = read_texts(reader, self.domains, listed=LISTED, compared=self.names)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, or their files."""
        return [name for name in str(self.settings["tasks"]).split(",") if name]

    def of(self, method: Method, ratio: str, seed: int) -> Found:
        """Return what a method's model does: what is in the log, or made and measured now."""
        key, log = f"{ratio} {seed} {method.name}", self.out / "measured.jsonl"
        for line in log.read_text().splitlines() if log.is_file() else ():
            row = json.loads(line)
            if row["key"] == key:
                return Found.from_json(row)
        name = "".join(sign if sign.isalnum() else "-" for sign in method.name)
        work = self.out / f"{ratio}-{seed}" / name
        work.parent.mkdir(exist_ok=True)
        made = []
        for words, folder in method.words(self._told(ratio, seed), work):
            made.append(folder)
            if not folder.is_dir():
                cli(words, standalone_mode=False)
        found = self._measured(work)
        with log.open("a") as stream:
            stream.write(json.dumps({"key": key, **found.to_json()}) + "\n")
        for folder in made:
            if folder.parent == work.parent:
                shutil.rmtree(folder)
        return found

    def whole(self) -> Found:
        """Return what the base does."""
        size = Checkpoint.open(self.model)
        experts = sum(size.expert_counts().values())
        self.engine.apply(None)
        return Found(experts, size.num_bytes, self._asked(self.engine), self._read(self.engine))

    def _measured(self, folder: Path) -> Found:
        name = ""
        if (folder / SWEEP_FILE).is_file():  # its best on search items, as it has no gates
            points = [point for point in SweepResult.load(folder).points if point.complete]
            name = max(points, key=lambda point: point.search).name
            folder = folder / "maps" / name
        routing_map, engine = RoutingMap.load(folder), self.engine
        if routing_map.tuned:
            size = Checkpoint.open(folder).num_bytes
            engine = _opened(folder)
        else:
            size = plan_build(Checkpoint.open(self.model), routing_map).num_bytes
            engine.apply(routing_map)
        experts = sum(layer.num_kept for layer in routing_map.layers)
        return Found(experts, size, self._asked(engine), self._read(engine), name)

    def _asked(self, engine: TransformersEngine) -> dict[str, Estimate]:
        found = {}
        for name in self.tasks:
            result = engine.evaluate(get_task(name), "test", self.settings["test_items"])
            low, high = result.confidence_interval()
            found[Path(name).stem] = Estimate(value=result.accuracy, low=low, high=high)
        return found

    def _read(self, engine: TransformersEngine) -> tuple[DomainQuality, ...]:
        own = read_texts(
            engine.reader, self.domains, listed=LISTED, compared=self.names, base=self.base
        )
        return qualities(self.domains, own, self.base)

    def _told(self, ratio: str, seed: int) -> dict[str, object]:
        """Return what the commands are told; scores the base once for each seed."""
        counts = Checkpoint.open(self.model).expert_counts()
        experts = max(counts.values())
        keep = experts - math.floor(float(ratio) * experts)
        text = self._text("train", self.settings["sequences"])
        scores = self.out / f"scores-{seed}"
        if not scores.is_dir():
            words = ["score", "--model", str(self.model), "--calibration", text]
            words += ["--length", "512", "--seed", str(seed), "--out", str(scores)]
            cli([*words, *(["--gradients"] if self.settings["gradients"] else [])],
                standalone_mode=False)  # fmt: skip
        return {
            **self.settings,
            "model": self.model,
            "scores": scores,
            "shared": self.out / f"all-{seed}",
            "text": text,
            "ratio": ratio,
            "keep": keep,
            "total": keep * len(counts),
            "floor": self.engine.top_k,
            "seed": seed,
        }

    def _text(self, side: str, count: int) -> str:
        """Return the bed's text as sources; written once, so that commands can read it."""
        folder = self.out / side
        if not folder.is_dir():
            train, held_out = texts_of(self.bed)
            folder.mkdir(parents=True)
            for name, documents in (train if side == "train" else held_out).items():
                lines = (json.dumps({"text": text}) + "\n" for text in documents)
                (folder / f"{name}.jsonl").write_text("".join(lines))
        return ",".join(f"{file.stem}={file}:{count}" for file in sorted(folder.iterdir()))


def _opened(folder: Path) -> TransformersEngine:
    device = pick_device("auto")
    return TransformersEngine(folder, device=device, dtype=pick_dtype("auto", device))
