"""`FinetuneSettings`: the numbers of a finetune."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from vllm_moe_prune.tuning import Trainable


class FinetuneSettings(BaseModel):
    """How weights are trained. The optimizer is AdamW and the schedule a cosine to zero.

    Nothing here is about where it runs: the same settings and seed give the same weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    trainable: Trainable = Field(default="all", description="which weights are trained")
    learning_rate: float = Field(default=1e-4, gt=0, description="the cosine's maximum")
    warmup: float = Field(default=0.03, ge=0, lt=1, description="share of steps that warm up")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's, decoupled")
    clip: float = Field(default=1.0, gt=0, description="largest norm of a step's gradient")
    batch: int = Field(default=8, ge=1, description="sequences per optimizer step, in all")
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="sequences in memory at once, per process; fewer accumulate gradients",
    )
    epochs: float = Field(default=1.0, gt=0, description="passes over the examples")
    lora_rank: int = Field(default=16, ge=1, description="rank of LoRA's matrices")
    lora_alpha: float = Field(default=32.0, gt=0, description="LoRA's scale, over its rank")
    mixed_precision: bool = Field(
        default=False, description="compute in bfloat16, keep weights in float32"
    )
    checkpointing: bool = Field(
        default=False, description="compute activations twice instead of keeping them"
    )
