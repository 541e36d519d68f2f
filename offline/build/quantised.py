"""Quantised checkpoints: what their quantiser wrote of experts, and where they cannot be read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vllm_moe_prune.checkpoint import Checkpoint, read_config
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.rewrite import Combine, Copy, Drop, Operation

# Entries of config.json, and files beside it, in which quantisers name modules.
_KEYS = ("quantization_config", "compression_config")
_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
_REGEX = ("re:", "+:", "-:")  # how compressed-tensors and GPTQModel mark one
_NUMBERED = re.compile(r"experts\\?\.\d")

Moves = Mapping[str, str | None]  # module -> its new name, None if it is gone


def settings_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what config.json says of its quantisation; nothing if it is silent."""
    found = next((config[key] for key in _KEYS if config.get(key)), None)
    return found if isinstance(found, Mapping) else {}


def unsettled(config: Mapping[str, Any]) -> list[str]:
    """Return the entries of config.json that an unquantised checkpoint would not have."""
    return [key for key in _KEYS if key in config]


def quantiser_of(folder: Path) -> str | None:
    """Return how a checkpoint was quantised, as its own files call it, or None if it was not."""
    config = read_config(folder)
    found = next((config[key] for key in _KEYS if config.get(key)), None)
    if found is None:
        return next((f"see {name}" for name in _FILES if (folder / name).exists()), None)
    method = found.get("quant_method") if isinstance(found, dict) else None
    return str(method or "by ModelOpt")


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

    :raises PruneError: for a pattern that means other experts then, or an expert there is not
    """
    files = [base.folder / name for name in _FILES if (base.folder / name).exists()]
    if not files and not any(base.config.get(key) for key in _KEYS):
        return base.config, {}
    moves = moves_of(operations, base.layout)
    config = {k: _followed(v, moves) if k in _KEYS else v for k, v in base.config.items()}
    contents = {
        file.name: json.dumps(_followed(json.loads(file.read_text()), moves), indent=2) + "\n"
        for file in files
    }
    return config, contents


def moves_of(operations: Iterable[Operation], layout: MoeLayout) -> Moves:
    """Return what becomes of every module that has tensors, and of every expert.

    In a merged layer all experts are stored alike, so a name goes on as long as there is one.
    """
    listed = list(operations)
    merged = {_module(op.target.name) for op in listed if isinstance(op, Combine)}
    layouts = (layout, layout.mtp_layout()) if layout.mtp_layer else (layout,)
    moves: dict[str, str | None] = {}

    def move(source: str, target: str | None) -> None:
        old, new = _module(source), target and _module(target)
        new = old if old in merged else new
        moves[old] = new
        roles = (one.classify(source) for one in layouts)
        if any(role is not None and role.kind == "expert" for role in roles):
            moves[_module(old)] = new and _module(new)

    for op in listed:
        if isinstance(op, Copy):
            move(op.source, op.target.name)
        elif isinstance(op, Drop):
            move(op.source.name, None)
        elif isinstance(op, Combine):
            for source in op.sources:
                move(source, None)
    return moves


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _followed(value: Any, moves: Moves) -> Any:
    if isinstance(value, dict):
        renamed = {key: _renamed(key, moves) for key in value}
        return {new: _followed(value[old], moves) for old, new in renamed.items() if new}
    if isinstance(value, list):
        items = (_renamed(one, moves) if isinstance(one, str) else one for one in value)
        return [_followed(one, moves) for one in items if one is not None]
    return value


def _renamed(entry: str, moves: Moves) -> str | None:
    if entry in moves:
        return moves[entry]
    if entry.startswith(_REGEX):
        _check_pattern(entry, moves)
    elif _NUMBERED.search(entry):
        raise PruneError(
            f"the quantisation settings name {entry}, which is no module of this checkpoint",
            hint="mend the entry in the base's config: experts get new numbers",
        )
    return entry


def _check_pattern(entry: str, moves: Moves) -> None:
    """A pattern may stay if it says the same of an expert before and after."""
    pattern = re.compile(entry.partition(":")[2])
    for old, new in moves.items():
        if new and old != new and bool(pattern.match(old)) != bool(pattern.match(new)):
            raise PruneError(
                f"the quantisation settings have the pattern {entry}, which would no longer mean "
                f"the same experts: {old} becomes {new}",
                hint="write these modules' names out in the base's config",
            )
