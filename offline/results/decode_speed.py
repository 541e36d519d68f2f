"""`DecodeSpeed`: tokens per second of a map while it generates, beside the base's."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from offline.results.estimate import Estimate


class DecodeSpeed(BaseModel):
    """What a map and its base took for the same prompts, in turn.

    Tokens per second are of all answers of a batch together; the few tokens of each prompt cost
    time and do not count. ``ratio`` is the map's by the base's, with its interval over the rounds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: str
    batch: int
    tokens: int
    rounds: int
    tokens_per_second: float
    base_tokens_per_second: float
    ratio: Estimate

    @property
    def how(self) -> str:
        """Say how it was measured."""
        return (
            f"{self.batch} answers of {self.tokens} tokens together, {self.rounds} times in turn "
            f"with the base, in the loaded {self.engine} engine"
        )
