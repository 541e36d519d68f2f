"""`WithMetrics`: what tasks of lm-evaluation-harness report beside the accuracy that decides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer


class WithMetrics(BaseModel):
    """All metrics of the task, and which split of its data the items are; both may be absent.

    ``unfinished`` generations never ended their thinking, and count as no answer.
    """

    metrics: dict[str, float] = Field(default_factory=dict)
    data_split: str = ""
    unfinished: int = 0

    @property
    def named(self) -> dict[str, str]:
        """Return what a table shows beside the accuracy: name -> number."""
        found = {name: f"{value:.4f}" for name, value in self.metrics.items()}
        if self.unfinished:
            found["generations that never ended their thinking"] = str(self.unfinished)
        return found

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        return {
            name: value
            for name, value in fields.items()
            if value or name not in WithMetrics.model_fields
        }


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that have a value: JSON knows no others."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
