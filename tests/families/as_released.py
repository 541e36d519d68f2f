"""A tiny model as its family is released, where transformers saves another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file


def rename(file: Path, names: Mapping[str, str]) -> None:
    """Replace parts of names, except in the vision tower: old part -> new one."""
    found = {}
    for name, tensor in load_file(file).items():
        for old, new in names.items():
            name = name if name.startswith("vision_tower.") else name.replace(old, new)
        found[name] = tensor
    save_file(found, file, metadata={"format": "pt"})


def as_transformers(folder: Path) -> Path:
    """Return the folder in which a model is as transformers reads it: its own, or one beside it."""
    beside = folder.with_name(folder.name + "-as-transformers")
    return beside if beside.exists() else folder


def put_beside(folder: Path) -> None:
    """Keep a model as transformers saved it beside the folder, which is changed then."""
    shutil.copytree(folder, folder.with_name(folder.name + "-as-transformers"))


def write_config(folder: Path, **fields: Any) -> None:
    """Change fields of config.json; None takes one out."""
    config = json.loads((folder / "config.json").read_text()) | fields
    kept = {key: value for key, value in config.items() if fields.get(key, key) is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def drop(file: Path, beginnings: tuple[str, ...]) -> None:
    """Leave out tensors whose names begin so."""
    tensors = load_file(file)
    kept = {name: one for name, one in tensors.items() if not name.startswith(beginnings)}
    save_file(kept, file, metadata={"format": "pt"})


def turn_experts(file: Path) -> None:
    """Transpose stacked experts, as the released model has them."""
    tensors = load_file(file)
    turned = {n: t.transpose(1, 2).contiguous() for n, t in tensors.items() if ".experts." in n}
    save_file(tensors | turned, file, metadata={"format": "pt"})
