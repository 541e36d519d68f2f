"""The one-shot methods on a run: what they need is measured once, then each gives maps."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from offline.calibration.scores import SOURCE, Scores, tokens_seen
from offline.calibration.statistics import Evidence, mean_outputs
from offline.compress.run import Run
from offline.compress.scores import blend_of, scores_of
from offline.fitness.usage import Usage, usage_of
from offline.maps.depth_groups import Groups
from offline.maps.genome import Genome
from offline.maps.map_entries import kept_genome
from offline.maps.map_space import Kept
from offline.maps.router_kind import slices
from offline.methods.baselines import ONE_SHOT, OneShotInput
from offline.methods.keep_last import keep_by_criterion
from vllm_moe_prune.routing_map import RoutingMap


@dataclass(slots=True)
class Observations:
    """What was seen of the base on the search items of all tasks; each kind at most once."""

    run: Run
    usage: Usage
    _discrepancies: dict[int, dict[Kept, float]] | None = field(default=None)
    _scores: Scores | None = field(default=None)
    _evidence: Evidence = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run) -> Observations:
        """Watch the base's router."""
        run.reporter.stage("watching the base's router", len(run.objective.tasks))
        return cls(run, usage_of(run.engines[0], run.objective, run.reporter.step))

    @property
    def tokens(self) -> dict[int, tuple[int, ...]]:
        """Return decoder layer -> tokens routed to each expert."""
        return {layer: tuple(int(n) for n in use.tokens) for layer, use in self.usage.items()}

    def kept(self, name: str, rng: random.Random, groups: Groups | None = None) -> dict[int, Kept]:
        """Return decoder layer -> what a one-shot method or a criterion keeps.

        :param name: of ``ONE_SHOT``, or a criterion's word such as `min-ean`
        :param groups: as the methods': None lets every layer choose apart
        """
        if name not in ONE_SHOT:
            self.scores()
            return keep_by_criterion(self.run.space, self._evidence, name, groups)
        method = ONE_SHOT[name]
        found = self._measured() if "discrepancies" in method.needs else None
        return method.keep(self.run.space, OneShotInput(self.usage, found), rng, groups)

    def scores(self) -> Scores:
        """Return the scores that criteria go by; made on the first call if none were given."""
        if self._scores is None:
            self._scores = scores_of(self.run)
            self._evidence = self._scores.evidence(blend_of(self.run.recipe))
        return self._scores

    def maps(self, name: str, rng: random.Random, count: int = 1) -> list[RoutingMap]:
        """Return ``count`` maps of a method or criterion; all but random are always the same.

        In a run that substitutes all of them do, each what it does not keep.
        """
        made, tokens, outputs = self.run.provenance, self.tokens, None
        if self.run.space.substitutes:
            self.scores()
            outputs = mean_outputs(self._evidence)
        if name not in ONE_SHOT:
            scores = self.scores()  # not the task's items, but this text has decided
            data = (*scores.provenance.data, *(d for d in made.data if d.name == SOURCE))
            made = made.model_copy(update={"data": data})
            tokens = tokens_seen(scores, blend_of(self.run.recipe))
        return [
            self.run.space.routing_map(self.kept(name, rng), made, tokens, outputs)
            for _ in range(count)
        ]

    def genomes(self, names: tuple[str, ...], groups: Groups) -> list[Genome]:
        """Return the methods' choices as genomes, to begin a search with."""
        rng = random.Random(f"one-shot {self.run.recipe.method.seed}")
        found = []
        for name in names:
            found.append(kept_genome(self.kept(name, rng, groups), groups))
        return found

    def _measured(self) -> dict[int, dict[Kept, float]]:
        if self._discrepancies is None:
            self._discrepancies = self._measure()
        return self._discrepancies

    def _measure(self) -> dict[int, dict[Kept, float]]:
        """Measure on the first task's search items what each layer loses with each subset."""
        from offline.engines.local.transformers import TransformersEngine

        engine, space = self.run.engines[0], self.run.space
        assert isinstance(engine, TransformersEngine)  # the recipe allows no other
        self.run.reporter.stage("measuring what layers lose without experts", 1)
        found = engine.reconstruction_losses(
            self.run.objective.tasks[0].task,
            "search",
            self.run.items("search"),
            space.even_counts(),
            top_k=space.top_k,
            seed=self.run.recipe.method.seed,
            sliced=slices(space.shape, space.router),
        )
        self.run.reporter.step()
        return found
