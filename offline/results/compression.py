"""`RunResult`: what one `vmprune compress` found out, as JSON; the report is drawn from it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from offline.results.lottery import LotteryRecord
from offline.results.metrics import WithMetrics
from offline.results.result_file import ResultFile
from offline.results.text_use import TextUse
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import Form

RESULT_FILE = "vmprune_result.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


# The base, a method or baseline, or a criterion's word such as min-ean; in the order of tables.
Variant = str
VARIANTS: tuple[Variant, ...] = (
    *("base", "random", "frequency", "soft_activation", "naee"),
    *("oneshot", "eep_prune", "eep", "lottery"),
)


class Quality(WithMetrics, _Frozen):
    """Accuracy of one variant on one task and split, 0..1, with its 95 % interval.

    With measure ``agreement`` it is the mean acceptance of the variant's next tokens by the base.
    ``eep_prune`` is what EEP had found when its pruning phase ended.
    """

    variant: Variant
    task: str
    measure: Literal["accuracy", "agreement"] = "accuracy"
    split: Literal["search", "selection", "test"]
    accuracy: float
    low: float
    high: float
    items: int = Field(ge=1)
    maps: int = Field(default=1, ge=1)  # over how many maps `accuracy` is the mean
    each: tuple[float, ...] = ()  # accuracy of every one of these maps


class Size(_Frozen):
    """Experts and bytes of a variant."""

    experts: int
    num_bytes: int
    expert_bytes: int


class SearchPoint(_Frozen):
    """One evaluated candidate, in the order of evaluation.

    ``complete`` is False where racing dropped it; ``fitness`` is then over the ``items`` it saw.
    """

    evaluation: int
    phase: Literal["prune", "merge"]
    fitness: float
    best: float
    complete: bool = True
    items: int
    seconds: float
    tokens: int


class LayerOutcome(_Frozen):
    """What became of one layer; ``usage`` are tokens per expert of the base on the search split.

    ``kept`` is empty where the new experts are merged from several.
    """

    layer: int
    num_experts: int
    num_kept: int
    kept: tuple[int, ...]
    top_k: int
    router: str
    usage: tuple[int, ...]


class RunResult(ResultFile):
    """Everything a reader wants to know of a run, without the weights."""

    file_name = RESULT_FILE
    made_by = "vmprune compress"

    schema_version: int = 2
    model: str
    out: str
    method: str
    task: str
    tasks: tuple[str, ...]
    fitness: str
    form: Form
    summary: str
    map_digest: str
    base_size: Size
    pruned_size: Size
    layers: tuple[LayerOutcome, ...]
    search: tuple[SearchPoint, ...]
    quality: tuple[Quality, ...]
    seconds: dict[str, float]  # stage -> seconds
    provenance: Provenance
    lottery: LotteryRecord | None = None
    text: dict[str, TextUse] = Field(default_factory=dict)  # that experts were scored on, by domain

    def quality_of(
        self, variant: str, split: str = "test", task: str | None = None
    ) -> Quality | None:
        """Return the entry for a variant, a split and a task (the first), if it was measured."""
        found = (
            q
            for q in self.quality
            if (q.variant, q.split) == (variant, split) and task in (None, q.task)
        )
        return next(found, None)
