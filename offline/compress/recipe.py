"""`CompressRecipe`: the one schema behind `vmprune compress`'s flags and its recipe files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from offline.build.mtp import MTP_HELP, MtpChoice
from offline.criteria.registry import Rule
from offline.lottery.recipe import LotteryFields
from offline.lottery.schedule import RANDOM, LotterySettings
from offline.runs.device import DType
from vllm_moe_prune.errors import PruneError, one_line

Method = Literal["eep", "oneshot", "lottery", "random", "frequency", "soft_activation", "naee"]
Baseline = Literal["random", "frequency", "soft_activation", "naee"]
Measure = Literal["accuracy", "margin", "agreement"]
Phases = Literal["both", "prune", "merge"]
Preset = Literal["fast", "paper"]
EngineName = Literal["transformers", "vllm"]
BASELINES: tuple[Baseline, ...] = ("random", "frequency", "soft_activation", "naee")


class CompressRecipe(LotteryFields):
    """Everything that decides the outcome of a compression; field descriptions are the help."""

    model: Path = Field(description="base checkpoint: a local folder")
    method: Method = Field(default="eep", description="how the kept experts are chosen")
    criterion: str = Field(
        default="min-ean",
        description="oneshot's and lottery's: min-NAME drops the lowest first, max-NAME the "
        "highest, a bare NAME the better end; all names are in docs/criteria.md; lottery also "
        "takes random",
    )
    scores: Path | None = Field(
        default=None, description="what `vmprune score` saved, for criteria; made here if not given"
    )
    calibration: str = Field(
        default="default",
        description="text to score for criteria, as `vmprune score` takes it",
    )
    domains: str | None = Field(
        default=None, description="weights of the scored domains for criteria: code:2,prose:1"
    )
    task: str = Field(
        default="sciq",
        description="what the model is for: a task, several with weights (sciq:2,arc_easy:1), "
        "an lm-eval YAML file, or text:FILE",
    )
    fitness: Measure = Field(
        default="accuracy",
        description="what a search maximises; agreement (with the base, token by token) needs "
        "no labels",
    )
    guard: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="no task may fall more than this below the base, e.g. 0.05",
    )
    keep: int | None = Field(
        default=None, ge=1, description="experts to keep in every layer (E'); all to merge only"
    )
    budget: int | None = Field(
        default=None, ge=1, description="experts to keep in all layers together, instead of --keep"
    )
    floor: int = Field(default=1, ge=1, description="with --budget: no layer keeps fewer")
    top_k: str | None = Field(
        default=None,
        description="active experts per token, for all layers (1) or by layer (0-14:2,15-29:1); "
        "the model's own if not given",
    )
    seed: int = Field(default=0, ge=0, description="seed of all random choices")
    preset: Preset = Field(
        default="fast",
        description="eep's and lottery's numbers: the paper's, or ours (eep's races candidates, "
        "lottery's trains small models)",
    )
    phases: Phases = Field(default="both", description="eep: prune, merge, or one after the other")
    evaluations: int | None = Field(
        default=None, ge=1, description="candidates that eep evaluates; the preset's if not given"
    )
    prune_evaluations: int | None = Field(
        default=None, ge=1, description="of these, before merging begins"
    )
    initial: int | None = Field(
        default=None, ge=1, description="random candidates that eep begins with"
    )
    children: int | None = Field(
        default=None, ge=1, description="candidates per generation: what replicas can share"
    )
    groups: str = Field(
        default="4", description="depth groups that share matrices: a number, or `layer`"
    )
    racing: bool | None = Field(
        default=None, description="drop a candidate as soon as it is statistically hopeless"
    )
    seeding: bool | None = Field(
        default=None, description="begin with the one-shot criteria's maps beside random ones"
    )
    seed_criteria: str | None = Field(
        default=None,
        description="criteria whose maps the search also begins with: min-ean,max-rwn",
    )
    search_items: int = Field(default=200, ge=1, description="items of the fitness (search split)")
    finalists: int | None = Field(
        default=None,
        ge=1,
        description="best candidates that are re-ranked on the selection split; the preset's if "
        "not given",
    )
    selection_items: int = Field(default=200, ge=1, description="items of the selection split")
    test_items: int | None = Field(
        default=None, ge=1, description="items of the held-out split; all if not given"
    )
    random_maps: int = Field(
        default=10, ge=0, description="random maps to compare with on the held-out split"
    )
    compare: str = Field(
        default="random,frequency",
        description=f"baselines to measure beside it: any of {', '.join(BASELINES)}, "
        "criteria such as min-ean; or none",
    )
    mtp: MtpChoice | None = Field(default=None, description=MTP_HELP)
    engine: EngineName = Field(
        default="transformers", description="what runs the model while searching"
    )
    replicas: int = Field(default=1, ge=1, description="engines that share the candidates (Ray)")
    ray_address: str = Field(
        default="local", description="Ray cluster to place replicas on; local starts one here"
    )
    tensor_parallel: int = Field(default=1, ge=1, description="with --engine vllm: its own TP size")
    device: str = Field(default="auto", description="cpu, cuda, cuda:1, ...; auto takes a GPU")
    dtype: DType = Field(
        default="auto",
        description="auto is the stored one, or float32 on a CPU that is slow in bfloat16",
    )

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if (self.keep is None) == (self.budget is None):
            raise ValueError("give either --keep (experts per layer) or --budget (in all layers)")
        if self.budget is not None and self.method not in ("eep", "oneshot"):
            raise ValueError(f"--budget is spread by the search; {self.method} needs --keep")
        if self.method == "lottery":
            self._check_lottery()
        reads_experts = self.engine == "transformers" and self.replicas == 1
        if "naee" in (self.method, *self.baselines) and not reads_experts:
            raise ValueError(
                "naee reads what experts compute: it needs --engine transformers --replicas 1"
            )
        if self.criteria and self.scores is None and not reads_experts:
            raise ValueError(
                f"{self.criteria[0]} reads what experts compute: give --scores, or "
                "--engine transformers --replicas 1"
            )
        return self

    def _check_lottery(self) -> None:
        """Refuse what a lottery cannot keep to: its rounds are plain checkpoints of one size."""
        if self.top_k is not None:
            raise ValueError("--top-k: lottery keeps the model's own; EEP can lower it afterwards")
        if self.engine != "transformers" or self.replicas > 1:
            raise ValueError("lottery trains: it needs --engine transformers --replicas 1")
        if self.mtp not in (None, "drop"):
            raise ValueError(f"--mtp {self.mtp}: a lottery trains, and MTP layers not: --mtp drop")
        if self.fitness == "agreement":
            raise ValueError("--fitness agreement is for searches; lottery measures accuracy")
        try:
            self.lottery  # noqa: B018  # refuses what is out of range
        except PruneError as error:
            raise ValueError(error.message) from None

    @property
    def inputs(self) -> tuple[object, ...]:
        """Return all that may name what is read: paths and words."""
        return tuple(getattr(self, name) for name in type(self).model_fields)

    @property
    def lottery(self) -> LotterySettings:
        """Return the numbers of a lottery.

        :raises PruneError: naming the setting that is out of range
        """
        return self.lottery_settings(self.preset, self.criterion)

    @property
    def lottery_words(self) -> tuple[str, ...]:
        """Return the criterion that a lottery goes by, with its direction; none at random."""
        if self.method != "lottery" or self.criterion == RANDOM:
            return ()
        return (Rule.parse(self.criterion).word,)

    @property
    def baselines(self) -> tuple[str, ...]:
        """Return the baselines to compare with: of ``BASELINES``, and criteria's words.

        :raises ValueError: naming the word that is none
        """
        words = [word.strip() for word in self.compare.split(",")]
        if words == ["none"]:
            return ()
        found = []
        for word in words:
            if word not in BASELINES and not word.startswith(("min-", "max-")):
                raise ValueError(
                    f"--compare: {word!r} is none of {', '.join(BASELINES)}, none, nor a criterion "
                    "such as min-ean"
                )
            found.append(word if word in BASELINES else _word("compare", word))
        return tuple(dict.fromkeys(found))

    @property
    def seed_words(self) -> tuple[str, ...]:
        """Return the criteria whose maps the search begins with, with their directions.

        :raises ValueError: naming the word that is none
        """
        words = self.seed_criteria.split(",") if self.seed_criteria and self.method == "eep" else ()
        return tuple(dict.fromkeys(_word("seed-criteria", word) for word in words))

    @property
    def criteria(self) -> tuple[str, ...]:
        """Return all criteria that are needed, with their directions.

        :raises ValueError: naming the word that is none
        """
        own = (_word("criterion", self.criterion),) if self.method == "oneshot" else ()
        compared = [word for word in self.baselines if word not in BASELINES]
        return tuple(dict.fromkeys((*own, *compared, *self.seed_words)))

    @property
    def races(self) -> bool:
        """Whether hopeless candidates are dropped; the preset's habit if not given."""
        return self.preset == "fast" if self.racing is None else self.racing

    @property
    def seeds(self) -> bool:
        """Whether the search begins with the baselines' maps; the preset's habit if not given."""
        return self.preset == "fast" if self.seeding is None else self.seeding

    @classmethod
    def merge(cls, recipe: Path | None, flags: dict[str, Any]) -> CompressRecipe:
        """Take the recipe file's entries, overridden by the flags that were given (not None).

        :raises PruneError: naming the entry that is missing, unknown or out of range
        """
        entries = _read_recipe(recipe) if recipe else {}
        entries.update({key: value for key, value in flags.items() if value is not None})
        if isinstance(entries.get("top_k"), int):  # a YAML file says `top_k: 1`
            entries["top_k"] = str(entries["top_k"])
        try:
            return cls.model_validate(entries)
        except ValidationError as error:
            first = error.errors()[0]
            missing = first["type"] == "missing"
            source = f"recipe {recipe}" if recipe else "settings"
            name = str(first["loc"][0]) if first["loc"] else ""
            hint = f"add --{name.replace('_', '-')}" if missing else None
            raise PruneError(f"{source}: {one_line(error)}", hint=hint) from None

    def num_groups(self, num_layers: int) -> int:
        """Return the number of depth groups.

        :raises PruneError: if `groups` is neither a positive number nor `layer`
        """
        if self.groups == "layer":
            return num_layers
        if self.groups.isdigit() and int(self.groups) > 0:
            return int(self.groups)
        raise PruneError(f"--groups {self.groups!r} is neither a number nor `layer`")


def _word(flag: str, word: str) -> str:
    """Return a criterion's word with its direction."""
    try:
        return Rule.parse(word).word
    except PruneError as error:
        raise ValueError(f"--{flag}: {error.message}") from None


def _read_recipe(file: Path) -> dict[str, Any]:
    import yaml

    try:
        entries = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        raise PruneError(f"no recipe file at {file}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise PruneError(f"recipe {file} is not YAML: {reason}") from None
    if not isinstance(entries, dict):
        raise PruneError(f"recipe {file} is not a table of settings")
    return entries
