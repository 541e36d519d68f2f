"""`MapLog`: what was measured of maps outside of the race, a line for each; it survives a kill."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from offline.results.decode_speed import DecodeSpeed
from offline.results.text_quality import DomainQuality
from offline.runs.lines import whole_lines
from vllm_moe_prune.errors import PruneError


class MapLine(BaseModel):
    """A line of such a log: the digest of a map, and what was measured of it."""

    digest: str


class TextLine(MapLine):
    """What a map made of text."""

    domains: tuple[DomainQuality, ...]


class SpeedLine(MapLine):
    """How fast a map generates."""

    speed: DecodeSpeed


Line = TypeVar("Line", bound=MapLine)


@dataclass(slots=True)
class MapLog(Generic[Line]):
    """The log of one sweep. A last line that a kill left half-written is cut off.

    :param kind: of the lines; ``found`` has the last one of each map by its digest
    :raises PruneError: if another line cannot be read
    """

    file: Path
    kind: type[Line]
    found: dict[str, Line] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place, text in whole_lines(self.file):
            try:
                line = self.kind.model_validate_json(text)
            except ValidationError:
                raise PruneError(
                    f"{place} is damaged",
                    hint="delete the lines from there on; they will be measured again",
                ) from None
            self.found[line.digest] = line

    def add(self, line: Line) -> None:
        """Write a map's line."""
        with self.file.open("a") as stream:
            stream.write(line.model_dump_json() + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.found[line.digest] = line
