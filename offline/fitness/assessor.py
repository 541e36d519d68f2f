"""`Assessor`: evaluates generations of maps on one or several engines and logs all it learns."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from offline.engines.base import Engine
from offline.fitness.candidate import Assessment
from offline.fitness.log import CandidateKey, EvaluationLog, How, ResultKey, digest_of
from offline.fitness.objective import Measure, Objective, Results, item_values
from offline.fitness.parallel import run_on
from offline.fitness.racing import Race, RacingSettings
from offline.tasks.catalog import Split, Task
from offline.tasks.results import TaskResult
from vllm_moe_prune.routing_map import RoutingMap

_SEARCH: Split = "search"


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A map to assess; ``place`` is its assessment as far as known before: where it came up."""

    key: CandidateKey
    routing_map: RoutingMap
    place: Assessment


class Assessor:
    """Gives candidates their fitness on the search split, and any map its results on any split.

    Only the thread that calls writes the log, as results arrive. All that decides a result is in
    the arguments: neither the number of engines nor their speed changes one.

    :param engines: copies of one engine; each is used by one thread at a time
    :param racing: None evaluates every candidate on all items
    :param on_done: called with each assessment as it is known, in the caller's thread
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        objective: Objective,
        log: EvaluationLog,
        *,
        racing: RacingSettings | None = None,
        on_done: Callable[[Assessment], None] = lambda assessment: None,
    ) -> None:
        assert engines
        self.engines = tuple(engines)
        self.objective = objective
        self.log = log
        self.racing = racing
        self._on_done = on_done

    def assess(
        self,
        maps: Sequence[RoutingMap],
        reference: Assessment | None = None,
        *,
        phase: str = "",
        generation: int = 0,
    ) -> list[Assessment]:
        """Return the fitness of each map of a generation, in order.

        :param reference: the best complete candidate when the generation began; without one, or
            without racing settings, no map is dropped
        :raises PruneError: if an engine refuses a map or a task's data cannot be had; what the
            other engines had under way is finished and logged first
        """
        base = self.evaluate(None, _SEARCH) if self.objective.needs_base else None
        race = self._race(reference)
        asked = self._candidates(maps, race, phase, generation)
        done = self._known_candidates(asked, base)
        for candidate, assessment in self._run(_missing(asked, done), race, base):
            done[candidate.key] = self._log_candidate(candidate, assessment)
            self._on_done(done[candidate.key])
        return [done[candidate.key] for candidate in asked]

    def evaluate(
        self,
        routing_map: RoutingMap | None,
        split: Split,
        limit: int | None = None,
        *,
        measure: Measure | None = None,
    ) -> dict[str, TaskResult]:
        """Return a map's results by task, as `evaluate_all`."""
        return self.evaluate_all([routing_map], split, limit, measure=measure)[0]

    def evaluate_all(
        self,
        maps: Sequence[RoutingMap | None],
        split: Split,
        limit: int | None = None,
        *,
        measure: Measure | None = None,
    ) -> list[dict[str, TaskResult]]:
        """Return each map's results by task, from the log or by evaluating it now.

        :param maps: None is the base
        :param limit: items of each task; the objective's own number for the split if not given
        :param measure: other than the objective's, such as the accuracy of what a search for
            agreement found
        :raises PruneError: as `assess`
        """
        limit = self.objective.items.get(split) if limit is None else limit
        how = _how(measure or self.objective.measure)
        waiting: list[tuple[RoutingMap | None, Callable[[Engine], Results]]] = []
        begun: set[str] = set()
        for routing_map in maps:
            digest = digest_of(routing_map)
            missing = [
                entry.task
                for entry in self.objective.tasks
                if self.log.result(ResultKey(digest, how, entry.task.name, split, limit)) is None
            ]
            if missing and digest not in begun:
                begun.add(digest)
                waiting.append((routing_map, _evaluation(routing_map, missing, how, split, limit)))
        for index, results in run_on(self.engines, [job for _, job in waiting]):
            self.log.add_results(waiting[index][0], how, limit, results)
        return [self._known(digest_of(m), how, split, limit) for m in maps]

    def _known(
        self, digest: str, how: How, split: Split, limit: int | None
    ) -> dict[str, TaskResult]:
        found = {}
        for name in self.objective.names:
            result = self.log.result(ResultKey(digest, how, name, split, limit))
            if result is not None:
                found[name] = result
        return found

    def _race(self, reference: Assessment | None) -> Race | None:
        if self.racing is None or reference is None:
            return None
        assert reference.complete, "a dropped candidate cannot be the reference"
        return Race(
            self.racing,
            self._values(reference.results),
            reference.fitness,
            self.objective.shares,
            self.objective.bounded,
        )

    def _values(self, results: Results) -> dict[str, tuple[float, ...]]:
        return {n: item_values(results[n], self.objective.measure) for n in self.objective.names}

    def _candidates(
        self, maps: Sequence[RoutingMap], race: Race | None, phase: str, generation: int
    ) -> list[_Candidate]:
        name, digest = self.objective.identity(), race.digest() if race else ""
        keys = [CandidateKey(m.digest(), name, digest) for m in maps]
        return [
            _Candidate(
                key, m, Assessment(key.digest, 0.0, False, {}, 0.0, phase, generation, number)
            )
            for number, (key, m) in enumerate(zip(keys, maps, strict=True))
        ]

    def _known_candidates(
        self, asked: Sequence[_Candidate], base: Results | None
    ) -> dict[CandidateKey, Assessment]:
        """Return what the log says of candidates, or of their results outside of the search."""
        done: dict[CandidateKey, Assessment] = {}
        for candidate in _missing(asked, {}):
            known = self.log.candidate(candidate.key) or self._from_results(candidate, base)
            if known is not None:
                done[candidate.key] = known
                self._on_done(known)
        return done

    def _run(
        self, missing: Sequence[_Candidate], race: Race | None, base: Results | None
    ) -> Iterator[tuple[_Candidate, Assessment]]:
        """Evaluate candidates on all engines and yield each as it ends."""
        jobs = [self._job(candidate, race, base) for candidate in missing]
        for number, assessment in run_on(self.engines, jobs):
            yield missing[number], assessment

    def _from_results(self, candidate: _Candidate, base: Results | None) -> Assessment | None:
        """Assess a map that has been evaluated outside of the search, on the same items."""
        how, limit = _how(self.objective.measure), self.objective.items.get(_SEARCH)
        results = self._known(candidate.key.digest, how, _SEARCH, limit)
        if len(results) < len(self.objective.tasks):
            return None
        assessment = replace(
            candidate.place,
            fitness=self.objective.fitness(results, base),
            complete=True,
            results=results,
            seconds=sum(result.seconds for result in results.values()),
        )
        return self._log_candidate(candidate, assessment)

    def _log_candidate(self, candidate: _Candidate, assessment: Assessment) -> Assessment:
        limit = (_how(self.objective.measure), self.objective.items.get(_SEARCH))
        limits = dict.fromkeys(self.objective.names, limit) if assessment.complete else {}
        self.log.add_candidate(candidate.key, assessment, candidate.routing_map, limits)
        known = self.log.candidate(candidate.key)
        assert known is not None
        return known

    def _job(
        self, candidate: _Candidate, race: Race | None, base: Results | None
    ) -> Callable[[Engine], Assessment]:
        """Return what evaluates one candidate, block by block where it races."""
        limit = self.objective.items.get(_SEARCH)
        ends = race.ends() if race else [dict.fromkeys(self.objective.names, limit)]

        def run(engine: Engine) -> Assessment:
            begin = time.perf_counter()
            engine.apply(candidate.routing_map)
            results: dict[str, TaskResult] = {}
            complete = True
            for end in ends:
                self._continue(engine, results, end)
                if race and end is not ends[-1] and race.is_hopeless(self._values(results)):
                    complete = False
                    break
            return replace(
                candidate.place,
                fitness=self.objective.fitness(results, base),
                complete=complete,
                results=results,
                seconds=time.perf_counter() - begin,
            )

        return run

    def _continue(
        self, engine: Engine, results: dict[str, TaskResult], end: Mapping[str, int | None]
    ) -> None:
        """Evaluate each task from where its result ends up to ``end``."""
        how = _how(self.objective.measure)
        for entry in self.objective.tasks:
            name = entry.task.name
            before = results.get(name)
            first = len(before.items) if before else 0
            if first == end[name]:
                continue
            block = _ask(engine, how, entry.task, _SEARCH, end[name], first)
            results[name] = _joined(before, block) if before else block


def _missing(asked: Sequence[_Candidate], done: Collection[CandidateKey]) -> list[_Candidate]:
    """Return the candidates that are not done, of twins the first."""
    found: dict[CandidateKey, _Candidate] = {}
    for candidate in asked:
        if candidate.key not in done:
            found.setdefault(candidate.key, candidate)
    return list(found.values())


def _how(measure: Measure) -> How:
    return "agreement" if measure == "agreement" else "evaluate"


def _ask(
    engine: Engine, how: How, task: Task, split: Split, limit: int | None, first: int
) -> TaskResult:
    ask = engine.agreement if how == "agreement" else engine.evaluate
    return ask(task, split, limit=limit, first=first)


def _evaluation(
    routing_map: RoutingMap | None,
    tasks: Sequence[Task],
    how: How,
    split: Split,
    limit: int | None,
) -> Callable[[Engine], Results]:
    def run(engine: Engine) -> Results:
        engine.apply(routing_map)
        return {task.name: _ask(engine, how, task, split, limit, 0) for task in tasks}

    return run


def _joined(before: TaskResult, block: TaskResult) -> TaskResult:
    return replace(
        before,
        items=before.items + block.items,
        tokens=before.tokens + block.tokens,
        seconds=before.seconds + block.seconds,
        unfinished=before.unfinished + block.unfinished,
        metrics={},  # of all items together they are not known
    )
