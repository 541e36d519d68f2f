"""A tiny model's file as its family is released, where transformers saves another."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file


def rename(file: Path, old: str, new: str) -> None:
    """Replace a part of the names of the language model's tensors."""
    tensors = load_file(file)
    text = (name for name in tensors if name.startswith("language_model."))
    renamed = {name: name.replace(old, new) for name in text}
    found = {renamed.get(name, name): tensor for name, tensor in tensors.items()}
    save_file(found, file, metadata={"format": "pt"})


def turn_experts(file: Path) -> None:
    """Transpose stacked experts, as the released model has them."""
    tensors = load_file(file)
    turned = {n: t.transpose(1, 2).contiguous() for n, t in tensors.items() if ".experts." in n}
    save_file(tensors | turned, file, metadata={"format": "pt"})
