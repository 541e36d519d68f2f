"""How answers are generated: greedily, as the server does by itself, or with given settings."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_moe_prune.errors import PruneError, one_line

GREEDY, OWN = "greedy", "own"
_HINT = f"{GREEDY}, {OWN} (the server's own settings) or temperature=0.7,top_p=0.8"


class Sampling(BaseModel):
    """Fields of a request; what is None is left to the server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = None
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0)
    presence_penalty: float | None = None
    frequency_penalty: float | None = None

    @classmethod
    def parse(cls, text: str) -> Sampling:
        """Read what a user wrote.

        :raises PruneError: if it is none of the three
        """
        if text == GREEDY:
            return cls(temperature=0)
        if text == OWN:
            return cls()
        fields: dict[str, str] = {}
        for part in text.split(","):
            name, sign, value = part.partition("=")
            if not sign:
                raise PruneError(f"--sampling {text}: {part!r} has no value", hint=_HINT)
            fields[name.strip()] = value.strip()
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise PruneError(f"--sampling {text}: {one_line(error)}", hint=_HINT) from None

    def body(self, seed: int) -> dict[str, Any]:
        """Return the fields of a request; ``seed`` is for what is drawn."""
        fields = self.model_dump(exclude_none=True)
        return fields if self.temperature == 0 else fields | {"seed": seed}
