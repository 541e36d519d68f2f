"""Quantised checkpoints: what their quantiser wrote of experts, and where they cannot be read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from offline.build.named_modules import Moves, Names, module_of
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.module_patterns import inner
from vllm_moe_prune.quantisation import FILES, KEYS, places, quantiser_of
from vllm_moe_prune.reading import read_object
from vllm_moe_prune.rewrite import Combine, Copy, Drop, Operation


def check_unquantised(folder: Path) -> None:
    """Refuse a quantised checkpoint where weights are to be trained.

    :raises PruneError: naming the quantisation
    """
    if (method := quantiser_of(folder)) is not None:
        raise PruneError(
            f"{folder} is quantised ({method}): what is trained needs the original weights",
            hint="train the original checkpoint and quantise the result",
        )


def follow(
    base: Checkpoint, operations: Iterable[Operation]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return config.json, and the quantiser's own files as name -> content, with new numbers.

    What names single experts in them names them as they are called after the operations.

    :raises PruneError: as `Names.followed`
    """
    files = [base.folder / name for name in FILES if (base.folder / name).exists()]
    if not files and not any(places(base.config)):
        return base.config, {}
    names = Names(moves_of(operations, base.layout))
    contents = {}
    for file in files:
        settled = names.followed(read_object(file), file.name)
        contents[file.name] = json.dumps(settled, indent=2) + "\n"
    return _settled(base.config, names), contents


def _settled(config: dict[str, Any], names: Names, where: str = "config.json") -> dict[str, Any]:
    """Return a config, or a section of it, whose entries about quantisation have new numbers."""

    def settled(key: str, value: Any) -> Any:
        if key in KEYS:
            return names.followed(value, inner(where, key))
        return _settled(value, names, inner(where, key)) if isinstance(value, dict) else value

    return {key: settled(key, value) for key, value in config.items()}


def moves_of(operations: Iterable[Operation], layout: MoeLayout) -> Moves:
    """Return what becomes of every module that has tensors, and of every expert.

    In a merged layer all experts are stored alike, so a name goes on as long as there is one.
    """
    listed = list(operations)
    merged = {module_of(op.target.name) for op in listed if isinstance(op, Combine)}
    layouts = (layout, layout.mtp_layout()) if layout.mtp_layer else (layout,)
    moves: dict[str, str | None] = {}

    def move(source: str, target: str | None) -> None:
        old, new = module_of(source), target and module_of(target)
        new = old if old in merged else new
        moves[old] = new
        roles = (one.classify(source) for one in layouts)
        if any(role is not None and role.kind == "expert" for role in roles):
            moves[module_of(old)] = new and module_of(new)

    for op in listed:
        if isinstance(op, Copy):
            move(op.source, op.target.name)
        elif isinstance(op, Drop):
            move(op.source.name, None)
        elif isinstance(op, Combine):
            for source in op.sources:
                move(source, None)
    return moves
