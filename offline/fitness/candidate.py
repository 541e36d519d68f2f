"""`Assessment`: what is known of one candidate of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from offline.fitness.log_lines import result_from_json, result_to_json
from offline.tasks.results import TaskResult


@dataclass(frozen=True, slots=True)
class Assessment:
    """One candidate, evaluated on all items of the fitness or dropped before their end.

    ``fitness`` of a dropped candidate (``complete`` false) is that of the items it was seen on;
    it must not be compared with others' and the candidate must not become a parent. ``results``
    are by task. ``seconds`` include applying the map. ``phase``, ``generation`` and ``number``
    (its place in the generation) say where in the search it came up first.
    """

    digest: str
    fitness: float
    complete: bool
    results: Mapping[str, TaskResult]
    seconds: float
    phase: str = ""
    generation: int = 0
    number: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that went through the model."""
        return sum(result.tokens for result in self.results.values())

    @property
    def items(self) -> int:
        """Items that it was seen on, of all tasks."""
        return sum(len(result.items) for result in self.results.values())

    def to_json(self) -> dict[str, Any]:
        """Return plain values for ``json.dumps``."""
        return {
            "phase": self.phase,
            "generation": self.generation,
            "number": self.number,
            "digest": self.digest,
            "fitness": self.fitness,
            "complete": self.complete,
            "seconds": self.seconds,
            "tokens": self.tokens,
            "results": {name: result_to_json(result) for name, result in self.results.items()},
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Assessment:
        """Rebuild what `to_json` gave; other entries are ignored."""
        results = {n: result_from_json(n, entry) for n, entry in fields["results"].items()}
        names = ("phase", "generation", "number", "digest", "fitness", "complete", "seconds")
        return cls(results=results, **{name: fields[name] for name in names})
