"""The sections of a recipe that all methods share; field descriptions are the flags' help."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from offline.build.mtp import MTP_HELP, MtpChoice
from offline.criteria.registry import Rule
from offline.fitness.objective import Measure
from offline.methods.baselines import ONE_SHOT
from offline.runs.device import DType
from offline.tasks.catalog import Library
from offline.tasks.prompting_settings import PromptingSettings
from offline.texts.chat import CHAT_TEMPLATE_HELP, ChatTemplate
from offline.texts.spec import PACK_HELP
from vllm_moe_prune.errors import PruneError

EngineName = Literal["transformers", "vllm"]
GPU_MEMORY_HELP = (
    "with --engine vllm: share of each GPU's memory that it may take, of which replicas on one GPU "
    "take a part each; vLLM's own if not given"
)


class Section(BaseModel):
    """Some settings about one concern; ``title`` heads their flags in the help.

    The flag of a field is its name, that of a field `name` is the section's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    title: ClassVar[str]
    # Say where something is or runs, and decide nothing of the outcome.
    places: ClassVar[frozenset[str]] = frozenset()


class BaseSection(Section):
    """What is compressed."""

    title = "Base"
    places = frozenset({"model"})

    model: Path = Field(
        description="base checkpoint: a folder, or Org/Name[@revision] on the Hugging Face hub"
    )


class DataSection(Section):
    """What the model is for, and the text that criteria score experts on."""

    title = "Data"
    places = frozenset({"scores"})

    task: str = Field(
        default="sciq",
        description="what the model is for: a task or group by name, several with weights "
        "(sciq:2,gsm8k:1) or a metric (gsm8k:exact_match), an lm-eval YAML file, or text:FILE",
    )
    include_path: Path | None = Field(
        default=None, description="folder of your own lm-eval YAML files, whose names are known too"
    )
    allow_code_execution: bool | None = Field(
        default=None,
        description="let tasks run the programs that the model writes, on this machine",
    )
    fitness: Measure = Field(
        default="accuracy",
        description="what is measured on a task, and what a search maximises; agreement (with the "
        "base, token by token) needs no labels",
    )
    search_items: int = Field(
        default=200, ge=1, description="items of each task that the choice is made by"
    )
    scores: Path | None = Field(
        default=None, description="what `vmprune score` saved, for criteria; made here if not given"
    )
    calibration: str = Field(
        default="default",
        description="text to score for criteria, as `vmprune score` takes it (docs/text.md)",
    )
    chat_template: ChatTemplate | None = Field(default=None, description=CHAT_TEMPLATE_HELP)
    pack: bool | None = Field(default=None, description=PACK_HELP)
    domains: str | None = Field(
        default=None, description="weights of the scored domains for criteria: code:2,prose:1"
    )

    @property
    def library(self) -> Library:
        """Return where tasks are looked up and how they are asked."""
        include = (self.include_path,) if self.include_path else ()
        return Library(include, bool(self.allow_code_execution))


class PromptingSection(PromptingSettings, Section):
    """How the tasks are put to the model, by a search and by all that is measured."""

    title = "Prompts and answers"


class MeasureSection(Section):
    """What is measured in the end, on items that decided nothing."""

    title = "Measuring the result"

    test_items: int | None = Field(
        default=None, ge=1, description="items of the held-out split; all if not given"
    )
    compare: str = Field(
        default="random,frequency",
        description=f"baselines to measure beside it: any of {', '.join(ONE_SHOT)}, "
        "criteria such as min-ean; or none",
    )
    random_maps: int = Field(
        default=10, ge=0, description="random maps to compare with on the held-out split"
    )

    @model_validator(mode="after")
    def _words(self) -> Self:
        self.baselines  # noqa: B018  # refuses what is none
        return self

    @property
    def baselines(self) -> tuple[str, ...]:
        """Return the baselines: names of ``ONE_SHOT``, and criteria's words.

        :raises ValueError: naming the word that is none
        """
        words = [word.strip() for word in self.compare.split(",")]
        if words == ["none"]:
            return ()
        found = []
        for word in words:
            if word not in ONE_SHOT and not word.startswith(("min-", "max-")):
                raise ValueError(
                    f"--compare: {word!r} is none of {', '.join(ONE_SHOT)}, none, nor a criterion "
                    "such as min-ean"
                )
            found.append(word if word in ONE_SHOT else criterion_word("compare", word))
        return tuple(dict.fromkeys(found))


class EngineSection(Section):
    """What runs the model."""

    title = "Engine"
    places = frozenset({"replicas", "ray_address", "device", "gpu_memory"})

    name: EngineName = Field(
        default="transformers", description="what runs the model while searching"
    )
    replicas: int = Field(default=1, ge=1, description="engines that share the candidates (Ray)")
    ray_address: str = Field(
        default="local", description="Ray cluster to place replicas on; local starts one here"
    )
    tensor_parallel: int = Field(default=1, ge=1, description="with --engine vllm: its own TP size")
    gpu_memory: float | None = Field(default=None, gt=0, le=1, description=GPU_MEMORY_HELP)
    cuda_graphs: bool | None = Field(
        default=None,
        description="with --engine vllm: record the model (torch.compile, CUDA graphs): faster "
        "steps, above all where text is written; eager if not given",
    )
    device: str = Field(default="auto", description="cpu, cuda, cuda:1, ...; auto takes a GPU")
    dtype: DType = Field(
        default="auto",
        description="auto is the stored one, or float32 on a CPU that is slow in bfloat16",
    )

    @property
    def reads_experts(self) -> bool:
        """Whether what single experts compute can be read."""
        return self.name == "transformers" and self.replicas == 1


class OutputSection(Section):
    """What is written."""

    title = "Output"

    mtp: MtpChoice | None = Field(default=None, description=MTP_HELP)


def criterion_word(flag: str, word: str) -> str:
    """Return a criterion's word with its direction.

    :raises ValueError: naming the flag and the word that is none
    """
    try:
        return Rule.parse(word).word
    except PruneError as error:
        raise ValueError(f"--{flag}: {error.message}") from None
