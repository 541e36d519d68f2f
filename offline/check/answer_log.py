"""A line for every answer of a check: what is in the file is not asked again."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from offline.check.answer import ProbeAnswer
from offline.check.probe import Probe
from offline.results.check import Kind, Side
from offline.runs.lines import whole_lines
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import parse_json

LOG_FILE = "answers.jsonl"
_ASK_AGAIN = "delete it; its probe will be asked again"


@dataclass(slots=True)
class AnswerLog:
    """The answers of both sides, of any number of probes and ways of sampling.

    A line names ``side``, ``sampling``, ``limit`` (tokens at most), ``probe`` and its ``kind``, and
    has the fields of an answer; or ``skipped`` in their place, which a server said of a kind.
    Reading it cuts off a last line that a kill left half-written.

    :param keeps_skipped: write down what a server refuses: it would do so again
    :raises PruneError: if another line cannot be read
    """

    file: Path
    limit: int  # tokens
    keeps_skipped: bool = True
    answers: dict[tuple[Side, str, str], ProbeAnswer] = field(default_factory=dict)
    skipped: dict[tuple[Side, Kind], str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        for place, line in whole_lines(self.file):
            try:
                self._remember(parse_json(line, place))
            except PruneError as error:
                raise PruneError(error.message, hint=_ASK_AGAIN) from None
            except (ValueError, LookupError, TypeError, ValidationError) as error:
                raise PruneError(
                    f"{place} is damaged: {type(error).__name__}",
                    hint=_ASK_AGAIN,
                ) from None

    def add(self, side: Side, sampling: str, probe: Probe, answer: ProbeAnswer) -> None:
        """Keep an answer; may be called from several threads."""
        place = {"side": side, "sampling": sampling, "limit": self.limit}
        named = {"probe": probe.digest, "kind": probe.kind}
        self._append({**place, **named, **answer.model_dump(exclude_defaults=True)})

    def skip(self, side: Side, kind: Kind, reason: str) -> None:
        """Remember why a kind cannot be asked."""
        entry = {"side": side, "kind": kind, "skipped": reason}
        if self.keeps_skipped:
            self._append(entry)
        else:
            self._remember(entry)

    def _append(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, separators=(",", ":"), ensure_ascii=False)
        with self._lock:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
            self._remember(entry)

    def _remember(self, entry: dict[str, Any]) -> None:
        fields = dict(entry)
        side, kind = fields.pop("side"), fields.pop("kind")
        if "skipped" in fields:
            self.skipped[side, kind] = fields["skipped"]
        elif fields.pop("limit") == self.limit:
            key = (side, fields.pop("sampling"), fields.pop("probe"))
            self.answers[key] = ProbeAnswer.model_validate(fields)
