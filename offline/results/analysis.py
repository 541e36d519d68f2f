"""`Analysis`: everything that `vmprune analyze` found, as JSON.

Shares are of 1. Tuples over experts are in the order of the ``experts`` beside them.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.fingerprint import BaseFingerprint
from vllm_moe_prune.provenance import Provenance, write_atomic
from vllm_moe_prune.reading import MissingFileError, read_model

ANALYSIS_FILE = "analysis.json"
SCHEMA_VERSION = 1

Numbers = tuple[float, ...]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pair(_Frozen):
    """Two experts and how often tokens chose both; ``lift`` as `CoActivation` has it."""

    experts: tuple[int, int]
    tokens: float
    lift: float


class LayerUse(_Frozen):
    """How the tokens of one layer spread over its experts."""

    layer: int
    top_k: int
    tokens: float  # T
    experts: tuple[int, ...]  # ids; of the base wherever they can be told
    share: Numbers  # of the layer's T x k assignments
    cv: float  # standard deviation of the share / its mean; 0 is even use
    max_over_mean: float  # how much busier than the mean the busiest expert is
    entropy: float  # of the share, nats
    entropy_share: float  # of ln E, 1 is even use
    unseen: tuple[int, ...]  # experts that no token was routed to
    mean_weight: float | None  # of the routing weights
    weight_bins: Numbers  # share of the routing weights in each of the equal parts of 0..1
    coverage: Numbers  # share of the vocabulary that each expert saw
    coverage_of_all: float  # share of the vocabulary that the text holds
    strongest_pair: Pair | None  # of the highest lift


class CoActivation(_Frozen):
    """Tokens that chose both experts / what their use alone makes likely; None: no telling."""

    layer: int
    experts: tuple[int, ...]
    lift: tuple[tuple[float | None, ...], ...]  # [E, E]


class DomainUse(_Frozen):
    """How each domain's tokens spread over the experts of one layer."""

    layer: int
    shares: dict[str, Numbers]  # domain -> share of its assignments [E]
    divergence: float | None  # Jensen-Shannon / ln(domains): 0 all alike, 1 nothing in common


class LayerFate(_Frozen):
    """What a routing map does to one layer; ``kept`` is None where it merges experts."""

    layer: int
    num_kept: int
    kept: tuple[int, ...] | None
    kept_share: float | None  # share of the base's assignments that went to kept experts


class Overlap(_Frozen):
    """What criteria would drop: Jaccard index |A and B| / |A or B| of every two of them.

    ``by_chance`` is what random choices of as many experts would have.
    """

    words: tuple[str, ...]
    keep: dict[int, int]  # decoder layer -> experts kept
    jaccard: tuple[Numbers, ...]  # [criteria, criteria]
    by_chance: float


class LayerChange(_Frozen):
    """One layer's survivors, ordered by scores of the base and of the pruned model."""

    layer: int
    rank_correlation: float | None  # Spearman's; None for fewer than two survivors
    next_overlap: float | None  # Jaccard index of the half that would go next


class Change(_Frozen):
    """How a criterion's order of the survivors changes when the model is pruned."""

    word: str
    rank_correlation: float | None  # mean over the layers
    next_overlap: float | None  # mean over the layers
    layers: tuple[LayerChange, ...]


class Analysis(_Frozen):
    """What `vmprune analyze` found; `None` and empty parts were not asked for."""

    schema_version: int = SCHEMA_VERSION
    model_type: str
    base: BaseFingerprint
    domains: dict[str, float] | None  # weights of the blend; None: all tokens count the same
    layers: tuple[LayerUse, ...] = Field(min_length=1)
    after: tuple[LayerUse, ...] = ()
    by_domain: tuple[DomainUse, ...] = ()
    co_activation: tuple[CoActivation, ...] = ()
    fates: tuple[LayerFate, ...] = ()
    overlap: Overlap | None = None
    changes: tuple[Change, ...] = ()
    provenance: Provenance

    def to_json(self) -> str:
        """Return the content of ``analysis.json``."""
        return self.model_dump_json(indent=1) + "\n"

    def save(self, folder: Path) -> None:
        """Write ``analysis.json``."""
        write_atomic(folder / ANALYSIS_FILE, self.to_json())

    @classmethod
    def load(cls, folder: Path) -> Analysis:
        """Read what `save` wrote.

        :raises PruneError: if there is none, or it is damaged
        """
        try:
            return read_model(folder / ANALYSIS_FILE, cls)
        except MissingFileError:
            raise PruneError(f"no {ANALYSIS_FILE} in {folder}", hint="vmprune analyze") from None
