"""The `lottery` section: rounds of dropping and finetuning."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from offline.compress.recipe.methods import LotteryMethod
from offline.compress.recipe.sections import Section
from offline.finetune.settings import FinetuneSettings
from offline.lottery.schedule import LotterySettings, settings_of
from vllm_moe_prune.tuning import Trainable


class LotterySection(Section):
    """What is not given is the preset's (docs/lottery.md has both presets' numbers)."""

    title = "Lottery's rounds"
    places = frozenset({"processes", "accelerate_config", "save_every"})

    rounds: int | None = Field(
        default=None, ge=1, description="rounds, instead of --drop-per-round"
    )
    drop_per_round: int | None = Field(
        default=None, ge=1, description="experts that each round drops of every layer"
    )
    finetune: bool | None = Field(
        default=None,
        description="finetune after dropping; without it one round is one-shot and "
        "several are iterative pruning",
    )
    round_tokens: int | None = Field(
        default=None, ge=1, description="tokens of the first round's finetune"
    )
    token_factor: float | None = Field(
        default=None, gt=0, description="times as many tokens in each following round"
    )
    token_cap: int | None = Field(
        default=None, ge=1, description="most tokens of a round's finetune"
    )
    trainable: Trainable | None = Field(default=None, description="which weights are trained")
    learning_rate: float | None = Field(
        default=None, gt=0, description="maximum of every round's cosine"
    )
    batch: int | None = Field(default=None, ge=1, description="sequences per step, in all")
    micro_batch: int | None = Field(
        default=None, ge=1, description="sequences in memory at once, per process"
    )
    length: int | None = Field(
        default=None, ge=2, description="tokens of a sequence to score, tune and measure"
    )
    lora_rank: int | None = Field(default=None, ge=1, description="rank of --trainable lora")
    mixed_precision: bool | None = Field(
        default=None, description="train in bfloat16, with weights in float32"
    )
    checkpointing: bool | None = Field(
        default=None, description="compute activations twice instead of keeping them"
    )
    held_out: int = Field(
        default=8, ge=1, description="sequences of each domain to measure perplexity on"
    )
    processes: int = Field(
        default=1, ge=1, description="processes of the finetune, by accelerate launch"
    )
    save_every: int | None = Field(
        default=None,
        ge=1,
        description="steps between states from which a killed finetune goes on",
    )
    accelerate_config: Path | None = Field(
        default=None, description="a file of `accelerate config`, e.g. for FSDP"
    )

    def settings(self, method: LotteryMethod) -> LotterySettings:
        """Return the preset changed by what is given; nothing here says where it runs.

        :raises PruneError: naming the setting that is out of range
        """
        names = (*LotterySettings.model_fields, *FinetuneSettings.model_fields)
        given = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return settings_of(method.preset, **{**given, "criterion": method.criterion})
