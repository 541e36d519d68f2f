"""`TextLog`: what maps made of text, a line for each; it survives a kill."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ValidationError

from offline.results.text_quality import DomainQuality
from offline.runs.lines import whole_lines
from vllm_moe_prune.errors import PruneError


class _Line(BaseModel):
    digest: str
    domains: tuple[DomainQuality, ...]


@dataclass(slots=True)
class TextLog:
    """The log of one sweep. A last line that a kill left half-written is cut off.

    :raises PruneError: if another line cannot be read
    """

    file: Path
    found: dict[str, tuple[DomainQuality, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place, text in whole_lines(self.file):
            try:
                line = _Line.model_validate_json(text)
            except ValidationError:
                raise PruneError(
                    f"{place} is damaged",
                    hint="delete the lines from there on; the text will be read again",
                ) from None
            self.found[line.digest] = line.domains

    def add(self, digest: str, domains: tuple[DomainQuality, ...]) -> None:
        """Write a map's line."""
        line = _Line(digest=digest, domains=domains)
        with self.file.open("a") as stream:
            stream.write(line.model_dump_json() + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.found[digest] = domains
