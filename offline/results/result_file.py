"""`ResultFile`: what a command found out, kept as one JSON file beside the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import write_atomic
from vllm_moe_prune.reading import MissingFileError, read_model


class ResultFile(BaseModel):
    """A frozen record with a file name; ``made_by`` is the command that writes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file_name: ClassVar[str]
    made_by: ClassVar[str]

    def to_json(self) -> str:
        """Return the content of the file."""
        return self.model_dump_json(indent=1) + "\n"

    def save(self, folder: Path) -> None:
        """Write the file into ``folder``."""
        write_atomic(folder / self.file_name, self.to_json())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the file of a folder.

        :raises PruneError: if there is none or it is damaged
        """
        try:
            return read_model(folder / cls.file_name, cls)
        except MissingFileError:
            raise PruneError(
                f"{folder} has no {cls.file_name}", hint=f"was it made by {cls.made_by}?"
            ) from None
