"""`RecoverRecipe`: what `vmprune recover` trains on and measures; field descriptions are the help.

Defaults are near MC-Suite's (arXiv 2504.05586, table 6): 512 tokens, batches of 8, learning rate
1e-4, two to five passes over a task's training items.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from offline.finetune.settings import FinetuneSettings
from offline.finetune.teacher_settings import TEACHER_PLACES, TeacherSettings
from offline.results.recovery import Mode
from offline.runs.device import DType
from offline.tasks.catalog import DEFAULT, Library, Task, get_tasks
from offline.tasks.prompting_settings import PromptingSettings
from offline.texts.chat import CHAT_TEMPLATE_HELP, ChatTemplate
from vllm_moe_prune.errors import PruneError, one_line
from vllm_moe_prune.reading import validated
from vllm_moe_prune.tuning import Trainable

_PLACES = frozenset(
    {"model", "base", "device", "processes", "accelerate_config", "save_every", "seed"}
)


class SftSettings(FinetuneSettings):
    """The numbers of a supervised finetune."""

    epochs: float = Field(default=3.0, gt=0, description="passes over the examples")


class RecoverRecipe(PromptingSettings, TeacherSettings):
    """Everything but the training's numbers that decides the outcome of a recovery."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: Path = Field(
        description="plain checkpoint to train, pruned or not: a folder, or Org/Name[@revision] on "
        "the Hugging Face hub"
    )
    distill: Trainable | None = Field(
        default=None,
        description="learn the next tokens that --base expects, in place of answers: these "
        "weights, `router` the gates alone; needs no labels, so that --data is any text",
    )
    base: Path | None = Field(
        default=None,
        description="base that it was pruned from, named alike: gets the same examples and "
        "finetune for comparison, and is not kept; or teaches, with --distill",
    )
    task: str | None = Field(
        default=None,
        description="tasks whose own training items are trained on, by name: sciq,gsm8k, or "
        "lm-eval YAML files",
    )
    data: str | None = Field(
        default=None,
        description="instructions to train on instead: SOURCE[:ROWS],... with prompts and answers, "
        "or chats; a file, a folder or hf:Org/Name (docs/text.md)",
    )
    chat_template: ChatTemplate | None = Field(default=None, description=CHAT_TEMPLATE_HELP)
    measure: str | None = Field(
        default=None, description="tasks to measure; those of --task if not given"
    )
    include_path: Path | None = Field(
        default=None, description="folder of your own lm-eval YAML files, whose names are known too"
    )
    allow_code_execution: bool | None = Field(
        default=None,
        description="let tasks run the programs that the model writes, on this machine",
    )
    examples: int | None = Field(
        default=None, ge=1, description="examples to train on, of all; all if not given"
    )
    steps: int | None = Field(
        default=None, ge=1, description="optimizer steps, instead of --epochs"
    )
    length: int = Field(
        default=512, ge=2, description="tokens of the longest example; longer prompts lose their "
        "beginning"
    )  # fmt: skip
    shots: int = Field(
        default=5, ge=0, description="examples in the prompt of k-shot; 0 leaves k-shot out"
    )
    test_items: int | None = Field(
        default=None, ge=1, description="held-out items of each task; all if not given"
    )
    seed: int = Field(default=0, ge=0, description="seed of all random choices")
    device: str = Field(default="auto", description="cpu, cuda, cuda:1, ...; auto takes a GPU")
    dtype: DType = Field(
        default="auto",
        description="to measure in; auto is the stored one, or float32 on a CPU that is slow in "
        "bfloat16",
    )
    processes: int = Field(
        default=1, ge=1, description="processes that train together, through accelerate"
    )
    accelerate_config: Path | None = Field(
        default=None, description="how they do: a file of `accelerate config`, for FSDP or DDP"
    )
    save_every: int | None = Field(
        default=None,
        ge=1,
        description="optimizer steps between two states from which a killed finetune goes on; it "
        "begins again if not given",
    )

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if (self.task is None) == (self.data is None):
            raise ValueError("give either --task (its training items) or --data (instructions)")
        if self.distill is not None:
            if self.base is None:
                raise ValueError("--distill learns what --base expects: give it")
            return self
        for name in self.teacher_flags:
            raise ValueError(f"--{name.replace('_', '-')} changes nothing without --distill")
        if self.base is not None and self.task is None and self.measure is None:
            raise ValueError("--base is there to be compared with: give --measure (tasks)")
        return self

    @classmethod
    def of(cls, flags: dict[str, Any]) -> RecoverRecipe:
        """Take the flags that were given (not None).

        :raises PruneError: naming the flag that is missing or out of range
        """
        given = {name: value for name, value in flags.items() if value is not None}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            hint = f"add --{first['loc'][0]}" if first["type"] == "missing" else None
            raise PruneError(f"settings: {one_line(error)}", hint=hint) from None

    @property
    def after(self) -> Mode:
        """Return what to call zero-shot after the finetune."""
        return "sft" if self.distill is None else "distilled"

    @property
    def places(self) -> frozenset[str]:
        """Return the fields that say where something is or runs, and decide nothing."""
        return _PLACES | TEACHER_PLACES

    @property
    def inputs(self) -> tuple[object, ...]:
        """Return all that may name what is read: paths and words."""
        return tuple(getattr(self, name) for name in type(self).model_fields)

    @property
    def trained(self) -> tuple[Task, ...]:
        """Return the tasks whose training items are trained on; none with instructions.

        :raises PruneError: for a task that is unknown, has no answers or is named twice
        """
        return tasks_of(self.task, "--task", self.library)

    @property
    def measured(self) -> tuple[Task, ...]:
        """Return the tasks that are measured.

        :raises PruneError: as `trained`
        """
        if not self.measure:
            return self.trained
        return tasks_of(self.measure, "--measure", self.library)

    @property
    def library(self) -> Library:
        """Return where tasks are looked up and how they are asked."""
        include = (self.include_path,) if self.include_path else ()
        return Library(include, bool(self.allow_code_execution), self.prompting)


def tasks_of(names: str | None, flag: str, library: Library = DEFAULT) -> tuple[Task, ...]:
    """Read ``NAME,...``; None is no task, and a group or tag is its tasks.

    :raises PruneError: for a task that is unknown, has no answers or is named twice
    """
    found: list[Task] = []
    named = [part.strip() for part in names.split(",")] if names is not None else []
    for task in (task for name in named for task in get_tasks(name, library)):
        _check_learnable(task, flag)
        if any(task.name == other.name for other in found):
            raise PruneError(f"{flag}: task {task.name} is named twice")
        found.append(task)
    return tuple(found)


def _check_learnable(task: Task, flag: str) -> None:
    if task.kind in ("text", "rolling"):
        raise PruneError(
            f"{flag}: {task.name} is plain text, which has no right answers",
            hint="give a task with questions; instructions go into --data",
        )
    if task.name != task.stem:
        raise PruneError(
            f"{flag}: {task.name} says how many examples there are",
            hint=f"write {task.stem}, and --shots {task.shots} for k-shot",
        )


def training_of(
    flags: dict[str, Any], steps: int | None, distill: Trainable | None = None
) -> SftSettings:
    """Take the training's flags that were given (not None).

    :param distill: which weights are taught by the base, if any are
    :raises PruneError: naming the flag that is out of range, or if both say how long
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if steps is not None and "epochs" in given:
        raise PruneError(
            "--steps and --epochs both say how long to train", hint="give one of the two"
        )
    if distill is not None:
        if "trainable" in given:
            raise PruneError(
                "--distill and --trainable both say what is trained", hint="give --distill alone"
            )
        given["trainable"] = distill
    lora = given.keys() & {"lora_rank", "lora_alpha"}
    if lora and given.get("trainable") != "lora":
        raise PruneError(
            f"--{min(lora).replace('_', '-')} changes nothing without --trainable lora"
        )
    return validated(given, SftSettings, "settings")
