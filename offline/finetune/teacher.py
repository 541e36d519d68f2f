"""`Teacher`: what a base expects at every place where examples have a loss, as it lies on disk.

    FOLDER/teacher.json    of which base and which examples, and how it was made
          /tokens.npy      [T, K] int32, the likeliest tokens of each place
          /log_probs.npy   [T, K] float32, their log-probabilities in nats

Places are in the order of the examples. What all other tokens have together follows from these
(docs/decisions/0034-listed-tokens.md). A folder is whole or not there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, JsonValue

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import DataIdentity, Provenance
from vllm_moe_prune.reading import check_file, read_model

TEACHER_FILE = "teacher.json"
TOKENS_FILE, LOG_PROBS_FILE = "tokens.npy", "log_probs.npy"


class TeacherTold(BaseModel):
    """``teacher.json``: ``made_of`` is what tells it from others, ``identity`` names what is in
    it, ``provenance`` says how it was made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    made_of: dict[str, JsonValue]
    identity: DataIdentity
    listed: int
    seconds: float
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Teacher:
    """The K likeliest next tokens at T places; the arrays are read from disk as they are used.

    :param first: place of the first one that counts: what comes before is of other examples
    """

    folder: Path
    tokens: NDArray[np.int32]  # [T, K]
    log_probs: NDArray[np.float32]  # [T, K]
    identity: DataIdentity
    first: int = 0

    @classmethod
    def load(cls, folder: Path, first: int = 0) -> Teacher:
        """Open what a base has said.

        :raises PruneError: if something is missing, damaged or of another size
        """
        told = read_model(folder / TEACHER_FILE, TeacherTold)
        shape = (told.identity.count, told.listed)
        tokens = _mapped(folder / TOKENS_FILE, "int32", shape)
        log_probs = _mapped(folder / LOG_PROBS_FILE, "float32", shape)
        return cls(folder, tokens, log_probs, told.identity, first)

    def after(self, places: int) -> Teacher:
        """Return what is said of the examples behind so many places."""
        return replace(self, first=self.first + places)

    def at(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return tokens and log-probabilities [P, K] of places [P]."""
        rows = self.first + places
        return self.tokens[rows].astype(np.int64), self.log_probs[rows]


def _mapped(file: Path, dtype: str, shape: tuple[int, int]) -> NDArray[Any]:
    check_file(file)
    hint = f"delete {file.parent}; the base is asked again"
    try:
        found: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise PruneError(f"{file} is damaged: {error}", hint=hint) from None
    if not isinstance(found, np.ndarray) or (str(found.dtype), found.shape) != (dtype, shape):
        raise PruneError(f"{file} is damaged: it is not {dtype} {list(shape)}", hint=hint)
    return found
