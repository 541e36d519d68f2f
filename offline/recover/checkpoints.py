"""`Checkpoints`: the checkpoints of a recovery, opened and checked before any work."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from offline.build.whole import check_whole_base
from offline.recover.recipe import RecoverRecipe
from offline.results.recovery import Subject
from offline.tasks.prompting_settings import check_chat
from vllm_moe_prune.checkpoint import COMPACT_FOLDER, Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing_map import MAP_FILE, RoutingMap

# Written by earlier commands beside a checkpoint: what they say is of the weights before.
RECORDS = (MAP_FILE, "finetune.json")


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoint that is trained and kept, its routing map if it has one, and its base."""

    model: Checkpoint
    routing_map: RoutingMap | None
    base: Checkpoint | None

    @classmethod
    def open(cls, recipe: RecoverRecipe) -> Checkpoints:
        """Open what the recipe names.

        :raises PruneError: if one cannot be read or is compact, or the base is another model's
        """
        _refuse_compact(recipe.model, "--model")
        model = Checkpoint.open(recipe.model)
        check_whole_base(model)
        check_chat(recipe, recipe.model)
        has_map = (recipe.model / MAP_FILE).is_file()
        routing_map = RoutingMap.load(recipe.model) if has_map else None
        if recipe.base is None:
            return cls(model, routing_map, None)
        _refuse_compact(recipe.base, "--base")
        base = Checkpoint.open(recipe.base)
        check_whole_base(base)
        _check_base(model, routing_map, base)
        if recipe.distill is not None:
            _check_vocabulary(model, base)
        return cls(model, routing_map, base)

    def folders(self) -> Iterator[tuple[Subject, Path]]:
        """Yield the base, if there is one, and then the model."""
        if self.base is not None:
            yield "base", self.base.folder
        yield "model", self.model.folder

    def identity(self) -> dict[str, object]:
        """Return what tells these checkpoints from others, wherever they lie."""
        return {name: _identity(folder) for name, folder in self.folders()}


def _identity(folder: Path) -> dict[str, str]:
    """Name a checkpoint by headers and routers, and by what says how its weights were made."""
    found = Checkpoint.open(folder).fingerprint().model_dump(exclude={"name"})
    for name in RECORDS:
        if (folder / name).is_file():
            found[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return found


def _refuse_compact(folder: Path, flag: str) -> None:
    has_map = (folder / MAP_FILE).is_file()
    compact = has_map and RoutingMap.load(folder).form == "compact"
    if compact or (folder / COMPACT_FOLDER).is_dir():
        raise PruneError(
            f"{flag}: {folder} is a compact checkpoint, which only vLLM can open",
            hint="train a plain one: the same number of experts in every layer (--keep), routers "
            "sliced (--router sliced)",
        )


def _check_base(model: Checkpoint, routing_map: RoutingMap | None, base: Checkpoint) -> None:
    if routing_map is not None and not routing_map.base.matches(base.fingerprint()):
        raise PruneError(
            f"{model.folder} was not pruned from {base.folder}, but from "
            f"{routing_map.base.name or 'another model'}",
            hint="give its own base as --base, or none",
        )
    if model.layout.model_type != base.layout.model_type:
        raise PruneError(f"{base.folder} and {model.folder} are models of different families")


def _check_vocabulary(model: Checkpoint, base: Checkpoint) -> None:
    """Refuse a base whose next tokens the model has no numbers for."""
    own, other = (one.vocab_size for one in (model, base))
    if own != other:
        raise PruneError(
            f"{model.folder} has {own} tokens and {base.folder} {other}: it cannot teach it",
            hint="give the base that it was pruned from as --base",
        )
