"""What a model loses when one layer alone keeps fewer experts: a pass over text for each number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from offline.calibration.scores import Scores, check_scores, identity_of
from offline.data.models import complete
from offline.engines.needs import check_evaluable
from offline.engines.opened import Where, in_engine
from offline.fitness.documents import DomainText, TextAsked, load_texts
from offline.fitness.text_quality import ReadingEngine, check_lengths, read_texts
from offline.maps.depth_groups import DepthGroup
from offline.plan.plan import plan, space_of
from offline.plan.recipe import PlanRecipe
from offline.results.sensitivity import LayerSensitivity, Sensitivity
from offline.runs.device import check_device
from offline.runs.progress import Reporter
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.provenance import DataIdentity, Provenance
from vllm_moe_prune.routing_map import RoutingMap

Sums = NDArray[np.float64]  # over documents


@dataclass(frozen=True, slots=True)
class SensitivityAsked:
    """Everything that a measurement goes by, opened and checked before the model is loaded.

    ``recipe`` keeps every expert; ``source`` says which scores order them. Each layer is measured
    with ``levels`` numbers of experts at most.
    """

    base: Checkpoint
    scores: Scores
    source: DataIdentity
    recipe: PlanRecipe
    text: TextAsked
    levels: int
    where: Where

    @classmethod
    def of(
        cls,
        model: Path,
        scores: Path,
        recipe: PlanRecipe,
        text: TextAsked,
        levels: int,
        where: Where,
    ) -> SensitivityAsked:
        """Open and check.

        :raises PruneError: for anything that cannot work
        """
        base, read = Checkpoint.open(model), Scores.load(scores)
        check_scores(read, base.fingerprint())
        if where.engine == "transformers":
            check_device(where.device)
        asked = cls(base, read, identity_of(read, scores), recipe, text, levels, where)
        _, _, smallest = next(asked.maps())
        check_evaluable(model, smallest, allow_other=False, engine=where.engine, dtype=where.dtype)
        return asked

    @property
    def layers(self) -> tuple[DepthGroup, ...]:
        """The layers, each with the bounds of what a budget may leave of it."""
        total = sum(self.scores.shape.num_experts.values())
        return space_of(self.scores.shape, self.recipe.sized(budget=total - 1)).groups()

    @property
    def passes(self) -> int:
        """How many times the text goes through the model."""
        return 1 + sum(len(counts_of(layer, self.levels)) for layer in self.layers)

    def maps(self) -> Iterator[tuple[int, int, RoutingMap]]:
        """Yield layer, experts that it keeps, and the map in which all other layers keep all."""
        for group in self.layers:
            (layer,) = group.layers
            for count in counts_of(group, self.levels):
                recipe = self.recipe.sized(keep_per_layer=f"{layer}:{count}")
                yield layer, count, plan(self.scores, recipe).routing_map


def counts_of(layer: DepthGroup, levels: int) -> tuple[int, ...]:
    """Return how many experts a layer is measured with, the fewest that it may keep first.

    They are as far from each other as they can be, in steps of the layer's router groups.
    """
    steps = (layer.most - layer.least) // layer.step
    chosen = np.unique(np.arange(min(levels, steps)) * steps // max(min(levels, steps), 1))
    return tuple(layer.least + int(number) * layer.step for number in chosen)


def run_sensitivity(asked: SensitivityAsked, reporter: Reporter) -> Sensitivity:
    """Load the model and measure every layer.

    :raises PruneError: if text cannot be had or is too long for the model
    """
    complete(asked.base.folder)
    reporter.stage("loading the model", 1)
    with in_engine(asked.base.folder, asked.where) as engine:
        reporter.step()
        return measure(engine, asked, reporter)


def measure(engine: ReadingEngine, asked: SensitivityAsked, reporter: Reporter) -> Sensitivity:
    """Measure every layer with an engine that holds the base."""
    reader = engine.reader
    domains = load_texts(asked.text, reader.tokenizer, reader.prefix_token_id)
    check_lengths(domains, reader)
    reporter.stage("measuring what layers lose", asked.passes)

    def read(routing_map: RoutingMap) -> list[Sums]:
        engine.apply(routing_map)
        found = sums_of(engine, domains)
        reporter.step()
        return found

    whole = read(plan(asked.scores, asked.recipe).routing_map)
    losses: dict[int, dict[int, float]] = {layer: {} for layer in asked.scores.shape.layers}
    errors: dict[int, dict[int, float]] = {layer: {} for layer in asked.scores.shape.layers}
    for layer, count, routing_map in asked.maps():
        more = [own - before for own, before in zip(read(routing_map), whole, strict=True)]
        losses[layer][count], errors[layer][count] = mean_and_error(more, domains)
    experts = asked.scores.shape.num_experts
    return Sensitivity(
        base=asked.base.fingerprint(),
        choice=asked.recipe.choice,
        loss=mean_and_error(whole, domains)[0],
        tokens=sum(len(text) - 1 for domain in domains for text in domain.texts),
        layers=tuple(
            LayerSensitivity(
                layer=layer, num_experts=experts[layer], losses=found, errors=errors[layer]
            )
            for layer, found in losses.items()
        ),
        provenance=_provenance(asked, domains),
    )


def sums_of(engine: ReadingEngine, domains: Sequence[DomainText]) -> list[Sums]:
    """Return the summed negative log-likelihood of each document, [N] of each domain, in nats."""
    readings = read_texts(engine.reader, domains)
    return [
        np.array([-one.log_probs.astype(np.float64).sum() for one in readings[domain.name]])
        for domain in domains
    ]


def mean_and_error(sums: Sequence[Sums], domains: Sequence[DomainText]) -> tuple[float, float]:
    """Return the mean per token, each domain counting the same, and its standard error.

    The error is over documents (that of a ratio of sums); a domain of one document adds none.

    :param sums: of each domain's documents, [N]
    """
    means, variances = [], []
    for values, domain in zip(sums, domains, strict=True):
        tokens = np.array([len(text) - 1 for text in domain.texts])
        mean, count = float(values.sum() / tokens.sum()), len(values)
        rest = float(((values - mean * tokens) ** 2).sum())
        means.append(mean)
        variances.append(count / max(count - 1, 1) * rest / float(tokens.sum()) ** 2)
    return fmean(means), math.sqrt(sum(variances)) / len(means)


def _provenance(asked: SensitivityAsked, domains: Sequence[DomainText]) -> Provenance:
    return Provenance.now(
        "sensitivity",
        settings={
            **asked.recipe.choice,
            "text": [f"{part.name}={part.source}:{part.sequences}" for part in asked.text.parts],
            "length": asked.text.length,
            "levels": asked.levels,
            "engine": asked.where.engine,
            "dtype": asked.where.dtype,
        },
        seed=asked.text.seed,
        data=(*(domain.identity for domain in domains), asked.source),
    )
