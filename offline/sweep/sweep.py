"""`vmprune sweep`: all choices race on search items, the best are measured on held-out ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from offline.engines.opened import EngineName
from offline.fitness.assessor import Assessor
from offline.fitness.candidate import Assessment
from offline.fitness.documents import TextAsked
from offline.fitness.log import EvaluationLog
from offline.fitness.objective import Objective
from offline.fitness.racing import RacingSettings
from offline.fitness.text_quality import ReadingEngine, TextBench
from offline.fitness.usage import usage_of
from offline.gates.gates import Gates
from offline.results.decode_speed import DecodeSpeed
from offline.results.sweep import SweepPoint, SweepResult
from offline.results.text_quality import DomainQuality
from offline.runs.progress import Reporter
from offline.runs.units import gib
from offline.sweep.choices import Choice, Choices
from offline.sweep.front import as_small, finalists
from offline.sweep.map_log import MapLog, SpeedLine, TextLine
from offline.sweep.search import Start, search_on, starts_of
from offline.sweep.settings import SweepSettings
from offline.sweep.speed import SpeedBench
from offline.sweep.summary import Findings, result_of, with_speeds
from offline.tasks.results import TaskResult
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap

Say = Callable[[str], None]
Results = Mapping[str, TaskResult]


@dataclass(slots=True)
class Sweep:
    """One sweep under way.

    :param folder: keeps what lets it continue after a kill
    :param say: takes a line for people
    """

    base: Checkpoint
    choices: Choices
    objective: Objective
    settings: SweepSettings
    folder: Path
    reporter: Reporter
    engine_name: EngineName
    text: TextAsked | None = None
    say: Say = lambda line: None
    _found: dict[str, Assessment] = field(default_factory=dict)

    @property
    def cost(self) -> str:
        """Say what it will take, in items and maps: known before the model is loaded."""
        searches = len(self._starts) * self.settings.search
        maps, again = len(self.choices.found), self._most_finalists
        tasks = len(self.objective.tasks)
        search, test = (tasks * n for n in (self.settings.search_items, self.settings.test_items))
        said = (
            f"{maps} maps race on at most {search} items each, at most {again} of them and the "
            f"base are measured on {test} held-out items"
        )
        if self.text is not None:
            documents = sum(part.sequences for part in self.text.parts)
            said += f" and read at most {documents} documents"
        if self.settings.search:
            said += f"; {len(self._starts)} searches have {searches} candidates"
        most = (maps + searches + 1) * search + (again + 1) * test
        said += f": {most:,} items at most"
        if rounds := self.settings.speed_rounds:
            answers = 2 * (rounds + 1) * self.settings.speed_batch
            tokens = self.settings.speed_tokens
            said += (
                f"; for tokens/s {answers} answers of {tokens} tokens for each on the front, "
                f"{again * answers * tokens:,} tokens at most"
            )
        vectors = sum(one.routing_map.vector_bytes for one in self.choices.found)
        return said + (f"; {gib(vectors)} of vectors are kept with the maps" if vectors else "")

    def run(
        self, engine: ReadingEngine, gates: Gates | None, made: Provenance, out: Path
    ) -> SweepResult:
        """Measure everything, or what is left of it.

        :param engine: the base, with no map applied
        :param made: provenance of the result
        :param out: where maps will be, for the commands
        :raises PruneError: if a task's data or the text cannot be had, or the engine can be none
        """
        self._leave_out(engine)
        log = EvaluationLog(self.folder / "evaluations.jsonl")
        assessor = self._assessor(engine, log)
        self.reporter.stage("measuring the base", 1)
        before = assessor.evaluate(None, "search")
        self._tell_time(before)
        self._race(assessor)
        if self.settings.search:
            self._search(engine, log, made)
        again = self._finalists()
        self.reporter.stage("measuring on held-out items", len(again) + 1)
        base, *held_out = self._held_out(assessor, [None, *(one.routing_map for one in again)])
        texts = self._read(engine, again) if self.text is not None else {}
        measured = dict(zip((one.name for one in again), held_out, strict=True))
        found = Findings(self._found, before, base, measured, texts)
        result = result_of(
            self.base, self.choices, self.objective, self.settings, found, gates, made, out
        )
        return with_speeds(result, self._speeds(engine, result.to_take))

    def _assessor(
        self,
        engine: ReadingEngine,
        log: EvaluationLog,
        on_done: Callable[[Assessment], None] = lambda one: None,
    ) -> Assessor:
        racing, engines = RacingSettings(slack=self.settings.slack), [engine]
        return Assessor(engines, self.objective, log, racing=racing, on_done=on_done)  # type: ignore[arg-type]

    @property
    def _most_finalists(self) -> int:
        most = len(self.choices.found) + len(self._starts)
        return min(most, self.settings.finalists * len(self._classes))

    @property
    def _starts(self) -> list[Start]:
        """Return what searches can begin with, if there are to be any."""
        return starts_of(self.choices) if self.settings.search else []

    @property
    def _classes(self) -> list[list[str]]:
        """Return the names of the choices by size, the smallest first."""
        ordered = sorted(self.choices.found, key=lambda one: one.size)
        grouped = itertools.groupby(ordered, key=lambda one: one.size)
        return [[one.name for one in group] for _, group in grouped]

    def _leave_out(self, engine: ReadingEngine) -> None:
        """Leave out what only the loaded engine knows that it cannot be, and say so."""
        asked, self.choices = self.choices, self.choices.that(engine.apply)
        for name, why in self.choices.skipped.items():
            if name not in asked.skipped:
                self.say(f"note: {name} is left out: {why}")

    def _tell_time(self, before: Results) -> None:
        seconds = sum(result.seconds for result in before.values())
        maps = len(self.choices.found) + len(self._starts) * self.settings.search
        minutes = seconds * maps / 60
        more = self.settings.test_items / self.settings.search_items * seconds / 60
        race = "race and searches take" if self._starts else "the race takes"
        self.say(
            f"the base took {seconds:.0f} s on its items: {race} at most {minutes:.0f} min, and "
            "less for what is dropped early; held-out items about "
            f"{more * (self._most_finalists + 1):.0f} min at most"
        )

    def _race(self, assessor: Assessor) -> None:
        """Assess all choices, each against the best that is as small: the smallest come first."""
        self.reporter.stage("racing", len(self.choices.found))
        for number, choice in enumerate(self.choices.found):
            as_good = [
                self._found[other.name]
                for other in self.choices.found[:number]
                if as_small(other, choice) and self._found[other.name].complete
            ]
            reference = max(as_good, key=lambda one: one.fitness, default=None)
            (found,) = assessor.assess([choice.routing_map], reference, phase="sweep")
            self._found[choice.name] = found
            mark = "" if found.complete else " dropped"
            self.reporter.step(note=f"{choice.name} {found.fitness:.3f}{mark}")

    def _search(self, engine: ReadingEngine, log: EvaluationLog, made: Provenance) -> None:
        """Search on from the choices of each size, and take what is better as one of them."""
        started: list[tuple[Start, list[Choice]]] = []
        for start in self._starts:
            if seeds := start.seeds(self._found):
                started.append((start, seeds))
            else:
                self.say(f"note: no {start.name}: all that it would begin with was dropped")
        if not started:
            return
        assessor = self._assessor(
            engine, log, lambda one: self.reporter.step(note=f"{one.fitness:.3f}")
        )
        self.reporter.stage("watching the base's router", len(self.objective.tasks))
        usage = usage_of(assessor.engines[0], self.objective, self.reporter.step)
        candidates = sum(len(seeds) + self.settings.search for _, seeds in started)
        self.reporter.stage("searching", candidates)
        for start, seeds in started:
            try:
                found = search_on(
                    start,
                    seeds,
                    self.base,
                    self.choices.shape,
                    usage,
                    self.settings,
                    assessor,
                    made,
                )
            except PruneError as error:  # what was measured stands
                self.say(f"note: {start.name} is left out: {error.message}")
                continue
            if found is not None:
                choice, self._found[start.name] = found
                self.choices = self.choices.with_one(choice)

    def _finalists(self) -> list[Choice]:
        sizes = {one.name: one for one in self.choices.found}
        fitness = {name: one.fitness for name, one in self._found.items() if one.complete}
        most, slack = self.settings.finalists, self.settings.slack
        return [sizes[name] for name in finalists(sizes, fitness, self._classes, most, slack)]

    def _held_out(
        self, assessor: Assessor, maps: Sequence[RoutingMap | None]
    ) -> list[dict[str, TaskResult]]:
        found = []
        for routing_map in maps:
            found.append(assessor.evaluate(routing_map, "test"))
            self.reporter.step()
        return found

    def _read(
        self, engine: ReadingEngine, again: Sequence[Choice]
    ) -> dict[str, tuple[DomainQuality, ...]]:
        """Let the base and the finalists read the text; what is in the log is not read again."""
        assert self.text is not None
        log = MapLog(self.folder / "texts.jsonl", TextLine)
        missing = [one for one in again if one.routing_map.digest() not in log.found]
        self.reporter.stage("reading text", len(missing))
        bench = TextBench(engine, self.text) if missing else None
        for one in missing:
            assert bench is not None
            domains = bench.measure(one.routing_map)
            log.add(TextLine(digest=one.routing_map.digest(), domains=domains))
            self.reporter.step(note=one.name)
        return {one.name: log.found[one.routing_map.digest()].domains for one in again}

    def _speeds(
        self, engine: ReadingEngine, points: Sequence[SweepPoint]
    ) -> dict[str, DecodeSpeed]:
        """Let some generate, each in turn with the base; what is in the log is not done again."""
        if not self.settings.speed_rounds:
            return {}
        log = MapLog(self.folder / "speeds.jsonl", SpeedLine)
        maps = {one.name: one.routing_map for one in self.choices.found}
        missing = [p for p in points if not self._is_known(log.found.get(p.digest))]
        self.reporter.stage("measuring tokens/s", len(missing))
        task = self.objective.tasks[0].task
        bench = SpeedBench.of(engine, self.engine_name, task, self.settings) if missing else None
        for point in missing:
            assert bench is not None
            speed = bench.measure(maps[point.name])
            log.add(SpeedLine(digest=point.digest, speed=speed))
            self.reporter.step(note=f"{point.name} {speed.ratio.value:.2f}")
        return {point.name: log.found[point.digest].speed for point in points}

    def _is_known(self, line: SpeedLine | None) -> bool:
        """Whether a line is of these settings, which decide nothing else."""
        own = self.settings
        asked = own.speed_rounds, own.speed_batch, own.speed_tokens
        if line is None:
            return False
        return asked == (line.speed.rounds, line.speed.batch, line.speed.tokens)
