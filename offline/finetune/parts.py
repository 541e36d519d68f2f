"""What a finetune trains, counted from a checkpoint's header before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from offline.finetune.settings import FinetuneSettings
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.rewrite import TensorInfo
from vllm_moe_prune.tuning import Trainable

Kind = Literal["experts", "routers", "other matrices of layers", "the rest"]
KINDS: tuple[Kind, ...] = ("experts", "routers", "other matrices of layers", "the rest")
FLOAT32 = 4  # bytes of a weight while it is trained

# With LoRA the matrices themselves stay as they are; adapters stand beside those of these kinds.
_TRAINED: Mapping[Trainable, tuple[Kind, ...]] = {
    "all": KINDS,
    "router": ("routers",),
    "router+experts": ("routers", "experts"),
    "lora": ("experts", "routers", "other matrices of layers"),
}


@dataclass(frozen=True, slots=True)
class Part:
    """Weights of one kind: how many there are, and how many numbers are trained for them."""

    name: Kind
    parameters: int
    trained: int

    @property
    def trained_bytes(self) -> int:
        """Bytes of what is trained, in float32."""
        return self.trained * FLOAT32


def parts_of(checkpoint: Checkpoint, settings: FinetuneSettings) -> tuple[Part, ...]:
    """Return one row for each kind of weights, for a table to print before training.

    "Other matrices of layers" are the attention's and those of layers without experts; "the rest"
    are embedding, head, norms and biases.
    """
    counts, trained = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    for info in _distinct(checkpoint):
        kind = _kind(checkpoint, info)
        counts[kind] += prod(info.shape)
        if kind in _TRAINED[settings.trainable]:
            trained[kind] += _numbers(checkpoint, info, kind, settings)
    return tuple(Part(kind, counts[kind], trained[kind]) for kind in KINDS)


def _distinct(checkpoint: Checkpoint) -> list[TensorInfo]:
    """Return the language model's tensors without a head that is the embedding again."""
    tied = checkpoint.text_config.get("tie_word_embeddings")
    owns = {name: checkpoint.layout.own_name(name) for name in checkpoint.tensors}
    left = (None, "lm_head.weight") if tied else (None,)
    return [info for name, info in checkpoint.tensors.items() if owns[name] not in left]


def _kind(checkpoint: Checkpoint, info: TensorInfo) -> Kind:
    role = checkpoint.layout.classify(info.name)
    if role is not None:
        return "routers" if role.kind == "router" else "experts"
    inside = ".layers." in info.name and len(info.shape) > 1
    return "other matrices of layers" if inside else "the rest"


def _numbers(
    checkpoint: Checkpoint, info: TensorInfo, kind: Kind, settings: FinetuneSettings
) -> int:
    """Return how many numbers are trained for one weight.

    With LoRA they are those of two narrow matrices. Gate and up are one weight [2I, D] while
    training and share the narrow matrix on the side of D, which is counted with the gate.
    """
    if settings.trainable != "lora":
        return prod(info.shape)
    if len(info.shape) == 3:  # experts that are stacked on disk as well
        return settings.lora_rank * info.shape[0] * (info.shape[1] + info.shape[2])
    rows, columns = info.shape
    role, projections = checkpoint.layout.classify(info.name), checkpoint.layout.projections
    if role is not None and len(projections) == 3 and role.projection == projections[1]:
        return settings.lora_rank * rows
    return settings.lora_rank * (rows + columns)
