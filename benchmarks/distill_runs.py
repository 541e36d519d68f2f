"""The runs behind `benchmarks.distill`: they share a model, its text, its scores and a folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from transformers import AutoTokenizer

from benchmarks.criteria import Bed, Texts, scores_of, texts_of
from offline.build.build import build
from offline.calibration.corpus import Domain, load_domains, parse_calibration
from offline.calibration.scores import Scores
from offline.check.traits import loops
from offline.engines.decoding import Decoding
from offline.engines.encoding import Prompt
from offline.engines.local.generation import end_tokens, generate
from offline.engines.local.transformers import TransformersEngine
from offline.engines.reading import Reading
from offline.finetune.examples import Examples, packed
from offline.finetune.finetune import Finetuned, finetune
from offline.finetune.settings import FinetuneSettings
from offline.finetune.teaching import Teaching
from offline.finetune.where import Where
from offline.fitness.documents import LISTED, DomainText, TextAsked, load_texts, parse_texts
from offline.fitness.text_quality import qualities, read_texts
from offline.lottery.measure import loss_of
from offline.plan.plan import plan
from offline.plan.recipe import PlanRecipe
from offline.results.intervals import wilson
from offline.runs.device import pick_device, pick_dtype
from offline.runs.progress import Reporter
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.provenance import write_atomic
from vllm_moe_prune.reading import read_object
from vllm_moe_prune.tuning import Trainable

Loss = Literal["next-token", "distill"]
Told = dict[str, Any]
LOSSES: tuple[Loss, ...] = get_args(Loss)
TRAINED: tuple[Trainable, ...] = ("router", "all")
_ALL = "all"  # domains as one
_PROMPT = 32  # tokens of a document that are continued


@dataclass(slots=True)
class Bench:
    """Runs that share a model, its text, its scores and a folder."""

    model: Path
    out: Path
    more: Mapping[str, Any]
    examples: Examples
    aside: tuple[Domain, ...]
    held_out: tuple[DomainText, ...]
    reporter: Reporter
    device: str = field(default_factory=lambda: pick_device("auto"))
    _base: dict[str, list[Reading]] | None = None

    @classmethod
    def begin(
        cls, bed: Bed, model: Path, out: Path, more: Mapping[str, Any], reporter: Reporter
    ) -> Bench:
        """Read the text, and score the base unless that was done."""
        train, held_out = texts_of(bed)
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
        count, aside = more["sequences"], more["aside"]
        parts = parse_calibration(_written(train, out, "", count + aside))
        length, seed = more["length"], more["seed"]
        domains = load_domains(parts, tokenizer, length=length, seed=seed)
        learnt = [replace(domain, token_ids=domain.token_ids[:count]) for domain in domains]
        tokens = count * length * len(domains)
        found = parse_texts("--held-out", _written(held_out, out, "held-out-", more["documents"]))
        asked = TextAsked(found, frozenset(held_out), length, seed)
        bench = cls(
            model,
            out,
            more,
            packed(learnt, tokens=tokens, seed=seed),
            tuple(replace(domain, token_ids=domain.token_ids[count:]) for domain in domains),
            load_texts(asked, tokenizer, tokenizer.bos_token_id or tokenizer.eos_token_id),
            reporter,
        )
        if not (out / "scores").is_dir():
            sizes = {"sequences": count // 2, "length": length, "gradients": 0}
            scores_of(bench.opened(model), train, out, sizes)
        return bench

    def opened(self, folder: Path) -> TransformersEngine:
        """Return a checkpoint, to be measured."""
        dtype = pick_dtype("auto", self.device)
        return TransformersEngine(folder, device=self.device, dtype=dtype)

    def pruned(self, ratio: str) -> Path:
        """Return the model without a share of each layer's experts, made if it is not there."""
        folder = self.out / f"{ratio}-pruned"
        if not folder.is_dir():
            recipe = PlanRecipe(
                criterion=self.more["criterion"], ratio=float(ratio), router="sliced"
            )
            planned = plan(Scores.load(self.out / "scores"), recipe)
            build(Checkpoint.open(self.model), planned.routing_map, folder)
        return folder

    def best(self, ratio: str, pruned: Path, trainable: Trainable, loss: Loss) -> Told:
        """Return the numbers of that learning rate which is best on what was kept aside."""
        rates = self.more[f"{trainable}_rates"].split(",")
        names = {rate: f"{ratio}-{trainable}-{loss}-{rate}" for rate in rates}
        tried = {
            rate: self._trained(name, pruned, trainable, loss, float(rate))
            for rate, name in names.items()
        }
        rate = min(tried, key=lambda one: float(tried[one]["aside"]))
        aside = {one: round(math.exp(told["aside"]), 3) for one, told in tried.items()}
        own = self.measured(names[rate], self.out / names[rate])
        return {**own, **tried[rate], "rate": rate, "aside": aside}

    def _trained(
        self, name: str, pruned: Path, trainable: Trainable, loss: Loss, rate: float
    ) -> Told:
        """Train unless that was done; returns the loss on what was kept aside, and what it took."""
        folder, file = self.out / name, self.out / f"{name}.aside.json"
        if not folder.is_dir():
            self._train(folder, pruned, trainable, loss, rate)
        if not file.is_file():
            engine, took = self.opened(folder), Finetuned.load(folder)
            losses = [loss_of(engine, domain.token_ids) for domain in self.aside]
            told = {"tokens": took.tuning.tokens, "seconds": round(took.seconds, 1)}
            write_atomic(file, json.dumps({"aside": float(np.mean(losses)), **told}))
        return read_object(file)

    def _train(
        self, folder: Path, pruned: Path, trainable: Trainable, loss: Loss, rate: float
    ) -> None:
        ways = {key: self.more[key] for key in ("batch", "micro_batch", "mixed_precision")}
        settings = FinetuneSettings(trainable=trainable, learning_rate=rate, **ways)
        dtype = pick_dtype("auto", self.device)
        teaching = Teaching(self.model, self.out / "teacher", self.device, dtype)
        finetune(
            pruned,
            self.examples,
            settings,
            folder,
            seed=self.more["seed"],
            where=Where(device=self.device, save_every=8),
            reporter=self.reporter,
            teacher=(
                teaching.teacher_of(self.examples, self.reporter) if loss == "distill" else None
            ),
        )

    def measured(self, name: str, folder: Path) -> Told:
        """Return what a checkpoint makes of held-out documents, measured unless that was done."""
        file = self.out / f"{name}.json"
        if not file.is_file():
            self.reporter.stage(f"measuring {name}", 1)
            if self._base is None:
                self._base = self._read(self.opened(self.model))
            engine = self.opened(folder)
            quality = self._quality(self._read(engine, self._base))
            found = {"quality": quality, "loops": {"greedy": self._looping(engine)}}
            write_atomic(file, json.dumps(found))
            self.reporter.step()
        return read_object(file)

    def _read(
        self, engine: TransformersEngine, base: dict[str, list[Reading]] | None = None
    ) -> dict[str, list[Reading]]:
        """Read the documents; those of all domains are there once more as one."""
        names = [domain.name for domain in self.held_out]
        found = read_texts(engine.reader, self.held_out, listed=LISTED, compared=names, base=base)
        return {_ALL: [reading for one in found.values() for reading in one], **found}

    def _quality(self, own: dict[str, list[Reading]]) -> Told:
        """Return the numbers of all documents, and each domain's ratio of perplexities."""
        texts = tuple(text for domain in self.held_out for text in domain.texts)
        domains = (replace(self.held_out[0], name=_ALL, texts=texts), *self.held_out)
        whole, *each = qualities(domains, own, self._base)
        ratios = {one.name: one.ratio.value for one in each if one.ratio is not None}
        return {**whole.model_dump(mode="json"), "ratios": ratios}

    def _looping(self, engine: TransformersEngine) -> dict[str, float]:
        """Return the share of greedy answers to the documents' beginnings that loop."""
        prompts = [
            Prompt(text[1 : _PROMPT + 1], Decoding(), self.more["answer_tokens"])
            for domain in self.held_out
            for text in domain.texts[: self.more["answers"]]
        ]
        ends = end_tokens(engine.model, engine.tokenizer)
        batch = engine.tokens_per_batch
        found = generate(engine.model, prompts, engine.tokenizer, batch, ends)
        units: list[Sequence[int]] = [engine.tokenizer.encode(answer.text) for answer in found]
        share = float(np.mean([loops(one) for one in units]))
        low, high = wilson(share, len(units))
        return {"value": share, "low": low, "high": high, "answers": len(units)}


def _written(texts: Texts, out: Path, prefix: str, count: int) -> str:
    """Write the documents of each domain to a file; returns what names so many of them."""
    specs = []
    for name, documents in texts.items():
        file = out / f"{prefix}{name}.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        specs.append(f"{name}={file}:{count}")
    return ",".join(specs)
