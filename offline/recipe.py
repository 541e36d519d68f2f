"""`CompressRecipe`: the one schema behind `vmprune compress`'s flags and its recipe files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_moe_prune.errors import PruneError, one_line

Method = Literal["eep", "random", "frequency"]
DType = Literal["auto", "bfloat16", "float32"]


class CompressRecipe(BaseModel):
    """Everything that decides the outcome of a compression; field descriptions are the help."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = Field(description="base checkpoint: a local folder")
    method: Method = Field(default="eep", description="how the kept experts are chosen")
    task: str = Field(default="sciq", description="task whose accuracy is the fitness")
    keep: int = Field(ge=1, description="experts to keep in every layer (E')")
    top_k: int | None = Field(
        default=None, ge=1, description="active experts per token; the model's own if not given"
    )
    seed: int = Field(default=0, ge=0, description="seed of all random choices")
    evaluations: int = Field(default=100, ge=1, description="candidates that eep evaluates")
    initial: int = Field(default=30, ge=1, description="random candidates that eep begins with")
    groups: str = Field(
        default="4", description="depth groups that share kept experts: a number, or `layer`"
    )
    search_items: int = Field(default=200, ge=1, description="items of the fitness (search split)")
    finalists: int = Field(
        default=5, ge=1, description="best candidates that are re-ranked on the selection split"
    )
    selection_items: int = Field(default=200, ge=1, description="items of the selection split")
    test_items: int | None = Field(
        default=None, ge=1, description="items of the held-out split; all if not given"
    )
    random_maps: int = Field(
        default=10, ge=0, description="random maps to compare with on the held-out split"
    )
    device: str = Field(default="auto", description="cpu, cuda, cuda:1, ...; auto takes a GPU")
    dtype: DType = Field(default="auto", description="auto is the dtype that is stored")

    @classmethod
    def merge(cls, recipe: Path | None, flags: dict[str, Any]) -> CompressRecipe:
        """Take the recipe file's entries, overridden by the flags that were given (not None).

        :raises PruneError: naming the entry that is missing, unknown or out of range
        """
        entries = _read_recipe(recipe) if recipe else {}
        entries.update({key: value for key, value in flags.items() if value is not None})
        try:
            return cls.model_validate(entries)
        except ValidationError as error:
            missing = error.errors()[0]["type"] == "missing"
            source = f"recipe {recipe}" if recipe else "settings"
            name = str(error.errors()[0]["loc"][0])
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
