"""What a lottery's rounds found out, as JSON: `round.json`, and a part of the result."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from offline.results.balance import coefficient_of_variation, shares
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import write_atomic
from vllm_moe_prune.reading import MissingFileError, read_model
from vllm_moe_prune.tuning import Tuning

ROUND_FILE = "round.json"
Record = TypeVar("Record", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerLoad(_Frozen):
    """Tokens that a layer's router sent to each of its experts, on the held-out text."""

    layer: int
    experts: tuple[int, ...]  # ids of the model that the lottery began with
    tokens: tuple[int, ...]
    cv: float  # standard deviation / mean; 0 is even load
    max_over_mean: float  # how much busier than the mean the busiest expert is

    @classmethod
    def of(cls, layer: int, experts: Sequence[int], tokens: Sequence[int]) -> LayerLoad:
        """Describe one layer."""
        share = shares(np.asarray(tokens, np.float64))
        return cls(
            layer=layer,
            experts=tuple(experts),
            tokens=tuple(int(n) for n in tokens),
            cv=coefficient_of_variation(share),
            max_over_mean=float(share.max() * len(share)),
        )


class Measured(_Frozen):
    """A model on the held-out text."""

    losses: dict[str, float]  # domain -> mean next-token loss in nats
    load: tuple[LayerLoad, ...]

    @property
    def loss(self) -> float:
        """Mean over the domains, each of which counts the same."""
        return statistics.fmean(self.losses.values())

    @property
    def perplexity(self) -> float:
        """Exponential of the mean loss: the geometric mean of the domains' perplexities."""
        return math.exp(self.loss)

    @property
    def perplexities(self) -> dict[str, float]:
        """Return domain -> perplexity."""
        return {name: math.exp(loss) for name, loss in self.losses.items()}

    @property
    def cv(self) -> float:
        """Coefficient of variation of the load, mean over the layers."""
        return statistics.fmean(layer.cv for layer in self.load)

    def save(self, file: Path) -> None:
        """Write it as JSON."""
        write_atomic(file, self.model_dump_json(indent=1) + "\n")


class RoundFinetune(_Frozen):
    """A round's finetune and what it took."""

    tuning: Tuning
    first_loss: float  # of the first and the last optimizer step
    last_loss: float
    peak_bytes: int
    trained_bytes: int


class RoundRecord(_Frozen):
    """One round: what it dropped, and the model before and after its finetune."""

    number: int
    criterion: str
    kept: dict[int, tuple[int, ...]]  # decoder layer -> ids of the model that it all began with
    map_digest: str  # of the round's own map
    dropped: Measured
    trained: RoundFinetune | None = None
    tuned: Measured | None = None
    seconds: dict[str, float]

    @property
    def result(self) -> Measured:
        """The model that the round ends with."""
        return self.tuned or self.dropped

    def save(self, folder: Path) -> None:
        """Write `round.json`."""
        write_atomic(folder / ROUND_FILE, self.model_dump_json(indent=1) + "\n")


class LotteryRecord(_Frozen):
    """All rounds, and the models at both ends; ``result`` is what is in the checkpoint's dtypes."""

    base: Measured
    rounds: tuple[RoundRecord, ...]
    result: Measured


def read_round(folder: Path) -> RoundRecord | None:
    """Return a round's record; None if the round is not over.

    :raises PruneError: if it is damaged
    """
    return _read(folder / ROUND_FILE, RoundRecord)


def read_measured(file: Path) -> Measured | None:
    """Return what was measured; None if it was not yet.

    :raises PruneError: if it is damaged
    """
    return _read(file, Measured)


def kept_ids(kept: Mapping[int, Sequence[int]]) -> dict[int, tuple[int, ...]]:
    """Return decoder layer -> ids as plain tuples."""
    return {layer: tuple(int(i) for i in ids) for layer, ids in kept.items()}


def _read(file: Path, model: type[Record]) -> Record | None:
    try:
        return read_model(file, model)
    except MissingFileError:
        return None
    except PruneError as error:
        raise PruneError(error.message, hint="delete it, to measure again") from None
