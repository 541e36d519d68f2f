"""How much memory a finetune needs, from a checkpoint's header alone, and whether there is any.

The figures are of one process. Only FSDP shares weights, gradients and moments out; with plain
processes each has them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from offline.finetune.parts import FLOAT32, parts_of
from offline.finetune.settings import FinetuneSettings
from offline.runs.memory import free_bytes
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.config_keys import num_layers_of
from vllm_moe_prune.errors import PruneError

_GIB = 1024**3


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes of one process, by what they are for."""

    memory: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes in all, without the libraries themselves."""
        return sum(self.memory.values())

    def rows(self) -> list[tuple[str, int]]:
        """Return (what for, bytes), for a table."""
        return [*self.memory.items(), ("in all", self.total)]


def memory_need(
    checkpoint: Checkpoint,
    settings: FinetuneSettings,
    *,
    length: int,
    micro: int,
    processes: int = 1,
    fsdp: bool = False,
    distilled: bool = False,
) -> MemoryNeed:
    """Estimate what a process needs; activations are rough, the rest is exact.

    :param length: L, tokens of a sequence
    :param micro: sequences in memory at once
    :param distilled: whether a teacher's distributions are learnt
    """
    parts = parts_of(checkpoint, settings)
    weights = FLOAT32 * sum(part.parameters for part in parts)
    trained = sum(part.trained_bytes for part in parts)
    shared = processes if fsdp else 1
    memory = {
        "weights": weights // shared,
        "gradients": trained // shared,
        "Adam's two moments": 2 * trained // shared,
    }
    if settings.trainable == "lora":
        memory["weights"] += trained
        memory["weights with their adapters"] = _adapted(checkpoint, settings)
    if fsdp:
        memory["weights of the layer at work"] = weights // num_layers_of(checkpoint.text_config)
    elif processes > 1:
        memory["gradients under exchange"] = trained
    if settings.mixed_precision:
        memory["weights in bfloat16"] = weights // 2 // shared
    memory["activations"] = _activations(checkpoint, settings, micro * length)
    # Themselves, without the last position, as log-probabilities, and the gradient; distilled:
    # also without the teacher's tokens, and the gradient of that.
    copies = 6 if distilled else 4
    vocabulary = checkpoint.vocab_size
    memory["logits"] = copies * micro * length * vocabulary * FLOAT32
    return MemoryNeed(memory)


def check_memory(need: MemoryNeed, device: str, *, processes: int = 1) -> None:
    """Refuse a finetune that does not fit, before anything is loaded.

    :param processes: on this machine; on a CPU they share its memory, a GPU has one of them
    :raises PruneError: with the numbers and what would help
    """
    needed, free = need.total * (processes if device == "cpu" else 1), free_bytes(device)
    if needed <= free:
        return
    parts = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in need.memory.items())
    several = f" for {processes} processes" if needed > need.total else ""
    raise PruneError(
        f"training needs about {needed / _GIB:.2f} GiB{several} and {free / _GIB:.2f} GiB are free "
        f"on {device} (GiB of a process: {parts})",
        hint="--trainable router trains least; --trainable lora needs no moments of the weights; "
        "a smaller --micro-batch or --checkpointing needs less for activations; "
        "FSDP by --accelerate-config shares weights out over GPUs",
    )


def _adapted(checkpoint: Checkpoint, settings: FinetuneSettings) -> int:
    """Bytes of weights plus adapters: peft computes with their sum, which backward needs.

    All layers' are held, and a gradient of one layer's; with checkpointing one layer's of each.
    """
    parts = parts_of(checkpoint, settings)
    every = FLOAT32 * sum(part.parameters for part in parts if part.trained)
    one = every // num_layers_of(checkpoint.text_config)
    return 2 * one if settings.checkpointing else every + one


def _activations(checkpoint: Checkpoint, settings: FinetuneSettings, tokens: int) -> int:
    """Bytes of what backward needs of ``tokens`` tokens in all layers, without the head."""
    hidden, layers = checkpoint.hidden_size, num_layers_of(checkpoint.text_config)
    top_k, width = checkpoint.layout.top_k(checkpoint.config), _expert_width(checkpoint)
    # Attention: two norms (twice each), q, k, v, their rotations, output, residuals. Experts, for
    # each of k: input, gate and up (twice), activation, product, output, weighted output, sum.
    layer = tokens * (18 * hidden + top_k * (4 * hidden + 6 * width)) * FLOAT32
    if settings.checkpointing:
        return layers * tokens * hidden * FLOAT32 + 2 * layer
    return (layers + 1) * layer


def _expert_width(checkpoint: Checkpoint) -> int:
    """Return I, the inner width of an expert."""
    layout, counts = checkpoint.layout, checkpoint.expert_counts()
    layer = min(counts)
    if layout.expert is not None:
        return checkpoint.tensors[layout.expert_name(layer, 0, layout.projections[0])].shape[0]
    gate_up = checkpoint.tensors[layout.stacked_names(layer)[0]]  # [E, 2I, D], in some order
    return prod(gate_up.shape) // (2 * counts[layer] * checkpoint.hidden_size)
