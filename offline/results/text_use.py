"""`TextUse`: how much of a source of text was used, and why the rest was not."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class TextUse(BaseModel):
    """Rows of a source that were looked at, and the tokens made of them.

    Rows are looked at in the order in which they are used, until there is enough.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(ge=0, description="looked at")
    used: int = Field(ge=0, description="of these, rows that gave tokens")
    skipped: dict[str, int] = Field(default_factory=dict, description="the others, by reason")
    tokens: int = Field(ge=0, description="in sequences")
    left_out: int = Field(
        default=0, ge=0, description="made, and in no sequence: beyond the end of the last one"
    )
    revision: str | None = Field(default=None, description="commit of a data set of the hub")

    @property
    def told(self) -> str:
        """Say it in a few words."""
        reasons = "".join(f", {count:,} {reason}" for reason, count in self.skipped.items())
        total = sum(self.skipped.values())
        skipped = f", {total:,} skipped ({reasons[2:]})" if total else ""
        return f"{self.used:,} rows{skipped}, {self.tokens:,} tokens"
