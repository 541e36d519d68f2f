"""The lottery's recipe: rounds of dropping and finetuning."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, JsonValue, model_validator

from offline.compress.recipe.method import CRITERION_HELP, PRESET_HELP, MethodSection, Preset
from offline.compress.recipe.recipe import CompressRecipe
from offline.compress.recipe.sections import Section, criterion_word
from offline.finetune.settings import FinetuneSettings
from offline.finetune.teacher_settings import TEACHER_PLACES, TeacherSettings
from offline.lottery.schedule import RANDOM, LotterySettings, settings_of
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.tuning import Trainable

_OF_FINETUNES = (
    "round_tokens", "token_factor", "token_cap", "loss", "trainable", "learning_rate", "batch",
    "micro_batch", "lora_rank", "mixed_precision", "checkpointing", "processes", "save_every",
    "accelerate_config",
)  # fmt: skip


class LotteryMethod(MethodSection):
    """Rounds of dropping and finetuning."""

    name: Literal["lottery"]
    criterion: str = Field(default="min-ean", description=CRITERION_HELP)
    preset: Preset = Field(default="fast", description=PRESET_HELP)


class LotterySection(TeacherSettings, Section):
    """What is not given is the preset's (docs/lottery.md has both presets' numbers)."""

    title = "Lottery's rounds"
    places = frozenset({"processes", "accelerate_config", "save_every"}) | TEACHER_PLACES

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
    loss: Literal["next-token", "distill"] | None = Field(
        default=None,
        description="what a finetune makes small: the loss of the text's next tokens, or with "
        "distill the distance to those that the base expects  [default: next-token]",
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


class LotteryRecipe(CompressRecipe):
    """Rounds of dropping and finetuning, each of which leaves a plain checkpoint of one size."""

    method: LotteryMethod
    lottery: LotterySection = LotterySection()

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if not self.engine.reads_experts:
            raise ValueError("lottery trains: it needs --engine transformers --replicas 1")
        if self.output.mtp not in (None, "drop"):
            mtp = self.output.mtp
            raise ValueError(f"--mtp {mtp}: a lottery trains, and MTP layers not: --mtp drop")
        if self.method.router == "mapped":
            raise ValueError(
                "--router mapped: every round of a lottery is a plain checkpoint, whose routers "
                "are sliced"
            )
        if self.data.fitness == "agreement":
            raise ValueError("--fitness agreement is for searches; lottery measures accuracy")
        try:
            self.settings_of_rounds()
        except PruneError as error:
            raise ValueError(error.message.removeprefix("settings: ")) from None
        return self

    @property
    def idle(self) -> dict[str, str]:
        """Return also what is about finetunes that are not done."""
        found, settings = super().idle, self.settings_of_rounds()
        if not settings.finetune:
            defaults = LotterySection.model_fields
            given = (n for n in _OF_FINETUNES if getattr(self.lottery, n) != defaults[n].default)
            found |= dict.fromkeys(given, "--finetune")
        elif settings.tuning.trainable != "lora" and self.lottery.lora_rank is not None:
            found["lora_rank"] = "--trainable lora"
        if not self.distills:
            found |= dict.fromkeys(self.lottery.teacher_flags, "--loss distill")
        if self.lottery.rounds is not None and self.lottery.drop_per_round is not None:
            found["drop_per_round"] = "no --rounds, which say it as well"
        return found

    @property
    def distills(self) -> bool:
        """Whether the base's next tokens are learnt."""
        return self.lottery.loss == "distill" and self.settings_of_rounds().finetune

    @property
    def reads_text(self) -> bool:
        """Whether calibration text decides anything: it is tuned and measured on as well."""
        return True

    @property
    def rounds_by(self) -> tuple[str, ...]:
        """Return the criterion that every round goes by, with its direction; none at random."""
        word = self.method.criterion
        return () if word == RANDOM else (criterion_word("criterion", word),)

    @property
    def scored_by(self) -> tuple[str, ...]:
        """Return also what rounds go by."""
        return tuple(dict.fromkeys((*self.rounds_by, *self.criteria)))

    def settings_of_rounds(self) -> LotterySettings:
        """Return the numbers of all rounds.

        :raises PruneError: naming the setting that is out of range
        """
        return self.lottery.settings(self.method)

    def numbers(self, num_layers: int) -> dict[str, JsonValue]:
        """Return those of all rounds."""
        return {"lottery": self.settings_of_rounds().model_dump(mode="json")}
