"""`SweepResult`: all choices that a sweep measured, the front of them, and the one to take."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from offline.results.decode_speed import DecodeSpeed
from offline.results.estimate import Estimate
from offline.results.gates import GatesResult
from offline.results.result_file import ResultFile
from offline.results.text_quality import DomainQuality
from vllm_moe_prune.provenance import Provenance

SWEEP_FILE = "sweep.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SweepPoint(_Frozen):
    """One choice: what it keeps, what it costs, and what it was found to do.

    ``search`` is the mean over the items that it was seen on while racing, which is worth nothing
    beside others' where it was not ``complete``. ``held_out`` is that on items that chose nothing,
    ``tasks`` by task; both only of those that were measured again. ``speed`` is that of the front
    and of the one to take.
    """

    name: str
    plan: dict[str, JsonValue] = Field(
        description="flags of `vmprune plan` that make it, or the candidates of its search"
    )
    digest: str
    experts: int
    active: float = Field(description="experts per token, mean of the layers")
    num_bytes: int
    complete: bool
    search: float
    items: int
    seconds: float
    held_out: Estimate | None = None
    tasks: dict[str, Estimate] = Field(default_factory=dict)
    text: tuple[DomainQuality, ...] = ()
    gates: GatesResult | None = None
    speed: DecodeSpeed | None = None
    on_front: bool = False
    command: str


class SweepResult(ResultFile):
    """Everything that one `vmprune sweep` found."""

    file_name = SWEEP_FILE
    made_by = "vmprune sweep"

    schema_version: int = 1
    model: str
    tasks: tuple[str, ...]
    base_experts: int
    base_bytes: int
    base_search: float
    base_held_out: Estimate
    points: tuple[SweepPoint, ...]
    skipped: dict[str, str] = Field(default_factory=dict, description="choices that cannot be")
    left_open: tuple[str, ...] = Field(default=(), description="gates that a sweep measures not")
    recommended: str | None = None
    provenance: Provenance

    @property
    def chosen(self) -> SweepPoint | None:
        """Return the smallest that passes the gates."""
        return next((point for point in self.points if point.name == self.recommended), None)

    @property
    def to_take(self) -> tuple[SweepPoint, ...]:
        """Return the front and the smallest that passes the gates, in the order of the points."""
        return tuple(one for one in self.points if one.on_front or one.name == self.recommended)

    @property
    def judged(self) -> bool:
        """Whether there were gates that a sweep can judge by."""
        return any(point.gates is not None for point in self.points)

    @property
    def front(self) -> tuple[SweepPoint, ...]:
        """Return the points on the front, the smallest first."""
        found = (point for point in self.points if point.on_front)
        return tuple(sorted(found, key=lambda point: (point.num_bytes, point.active)))
