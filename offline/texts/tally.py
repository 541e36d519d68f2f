"""`Tally`: what became of the rows of a source."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from offline.results.text_use import TextUse
from offline.texts.chat import Refused
from offline.texts.row import Row, Skip


@dataclass(slots=True)
class Tally:
    """Counts the rows that were looked at, by what became of them."""

    rows: int = 0
    used: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    first: str = ""  # of the rows that were skipped, with its reason

    def skip(self, row: Row, skip: Skip) -> None:
        """Count a row that gave nothing."""
        self.skipped[str(skip)] += 1
        if not self.first:
            detail = f" ({skip.reason})" if isinstance(skip, Refused) else ""
            self.first = f"{row.place}: {skip}{detail}"

    def why(self) -> str:
        """Say what to put behind "there is too little"; empty if no row was skipped."""
        if not self.skipped:
            return ""
        total = sum(self.skipped.values())
        return f"; {total:,} of {self.rows:,} rows were skipped, the first is {self.first}"

    def use(self, tokens: int, left_out: int = 0, revision: str | None = None) -> TextUse:
        """Return the counts for an artefact.

        :param tokens: in sequences; ``left_out``: made, and in none
        """
        return TextUse(
            rows=self.rows,
            used=self.used,
            skipped=dict(sorted(self.skipped.items())),
            tokens=tokens,
            left_out=left_out,
            revision=revision,
        )
