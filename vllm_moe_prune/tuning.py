"""`Tuning`: the record of a finetune that a checkpoint's weights went through after pruning."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from vllm_moe_prune.provenance import DataIdentity

Trainable = Literal["all", "router", "router+experts", "lora"]


class Tuning(BaseModel):
    """What was trained, for how long and on what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trainable: Trainable
    parameters: int = Field(ge=1, strict=True, description="how many were trained")
    steps: int = Field(ge=1, strict=True, description="optimizer steps")
    tokens: int = Field(ge=1, strict=True, description="tokens that had a loss, over all steps")
    learning_rate: float = Field(gt=0, description="the schedule's maximum")
    data: tuple[DataIdentity, ...] = ()
