"""A log of evaluations that survives a kill: nothing that is in it is evaluated again.

A JSONL file with two kinds of lines. ``candidate``: one map of a search with its fitness, whether
it was evaluated whole or dropped, its values on every item, seconds and tokens. ``evaluation``:
the results of the base (``map`` null), of a baseline or of a finalist on some split. The map on a
line is whole (offline/fitness/log_lines.py), so a line alone gives the candidate back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from offline.fitness.candidate import Assessment
from offline.fitness.log_lines import map_to_json, result_from_json, result_to_json
from offline.runs.lines import whole_lines
from offline.tasks.results import TaskResult
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import parse_json
from vllm_moe_prune.routing_map import RoutingMap

BASE = "base"  # stands for the digest of a map where there is none
How = Literal["evaluate", "agreement"]


def digest_of(routing_map: RoutingMap | None) -> str:
    """Return what names a map in the log; None is the base."""
    return BASE if routing_map is None else routing_map.digest()


class CandidateKey(NamedTuple):
    """What a candidate's assessment depends on; ``race`` is empty where there was no race."""

    digest: str
    objective: str
    race: str


class ResultKey(NamedTuple):
    """What the result of one task depends on; ``limit`` None means all items of the split."""

    digest: str
    how: How
    task: str
    split: str
    limit: int | None


@dataclass(slots=True)
class EvaluationLog:
    """The log of one run. Reading it cuts off a last line that a kill left half-written.

    :raises PruneError: if another line cannot be read
    """

    file: Path
    assessments: list[Assessment] = field(default_factory=list)  # in the file's order
    _candidates: dict[CandidateKey, Assessment] = field(default_factory=dict)
    _results: dict[ResultKey, TaskResult] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place, line in whole_lines(self.file):
            try:
                self._remember(parse_json(line, place))
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise PruneError(
                    f"{place} is damaged: {error!r}",
                    hint="delete the lines from there on; they will be evaluated again",
                ) from None

    def candidate(self, key: CandidateKey) -> Assessment | None:
        """Return an assessment made in this very race, or else one on all items."""
        return self._candidates.get(key) or self._candidates.get(key._replace(race=""))

    def result(self, key: ResultKey) -> TaskResult | None:
        """Return a result if it is known."""
        return self._results.get(key)

    def add_candidate(
        self,
        key: CandidateKey,
        assessment: Assessment,
        routing_map: RoutingMap,
        limits: Mapping[str, tuple[How, int | None]],
    ) -> None:
        """Write a candidate's line.

        :param limits: task name -> how and to which limit it was evaluated, if complete
        """
        self._append(
            {
                "kind": "candidate",
                "key": key,
                **assessment.to_json(),
                "limits": limits,
                "map": map_to_json(routing_map),
            }
        )

    def add_results(
        self,
        routing_map: RoutingMap | None,
        how: How,
        limit: int | None,
        results: Mapping[str, TaskResult],
    ) -> None:
        """Write the line of an evaluation outside of the search."""
        self._append(
            {
                "kind": "evaluation",
                "digest": digest_of(routing_map),
                "how": how,
                "limit": limit,
                "results": {name: result_to_json(result) for name, result in results.items()},
                "map": None if routing_map is None else map_to_json(routing_map),
            }
        )

    def _append(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, separators=(",", ":"))
        with self.file.open("a") as stream:
            stream.write(line + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._remember(parse_json(line, str(self.file)))  # what a run that continues would read

    def _remember(self, entry: dict[str, Any]) -> None:
        if entry["kind"] == "candidate":
            self._remember_candidate(entry)
            return
        for task, fields in entry["results"].items():
            key = ResultKey(entry["digest"], entry["how"], task, fields["split"], entry["limit"])
            self._results[key] = result_from_json(task, fields)

    def _remember_candidate(self, entry: dict[str, Any]) -> None:
        key = CandidateKey(*entry["key"])
        assessment = Assessment.from_json(entry)
        self.assessments.append(assessment)
        self._candidates[key] = assessment
        if assessment.complete:
            self._candidates.setdefault(key._replace(race=""), assessment)
            for task, (how, limit) in entry["limits"].items():
                split = assessment.results[task].split
                result_key = ResultKey(assessment.digest, how, task, split, limit)
                self._results.setdefault(result_key, assessment.results[task])
