"""How much memory and disk a calibration pass will take, from headers and shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from offline.texts.spec import Part
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.config_keys import num_layers_of

_SUMS = 8  # bytes of a float64
_VLLM = 1700 * 1024**2  # of its CPU build, a process with a tiny model and a small cache
_CLIENT = 210 * 1024**2  # of what asks it, in the program's own process
_COMPUTED = 2  # bytes of a number that vLLM computes with, whatever weights are stored in
_BFLOAT16 = 2  # bytes
_KERNEL = 768 * 1024  # bytes that oneDNN keeps for a product in bfloat16 of one shape
_KERNELS = 768  # so many of these weigh as much as the 1,024 of all sizes that it keeps
_LAYER_NAME = ".layers."
_LATER = 70 * 1024**2  # of a model's own code, and what libraries allocate once they compute


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by what they are for, in memory and on disk."""

    memory: dict[str, int]
    disk: dict[str, int]

    @property
    def peak(self) -> int:
        """Bytes of memory in all."""
        return sum(self.memory.values())

    @property
    def written(self) -> int:
        """Bytes of disk in all."""
        return sum(self.disk.values())


def files_needed(num_layers: int, *, gradients: bool) -> int:
    """Return how many files of hidden states lie on the disk at the same time.

    Forwards, a layer's outputs take the place of its inputs. To go backwards all inputs, the last
    outputs and one file of gradients are needed.
    """
    return num_layers + 2 if gradients else 1


def estimate(
    checkpoint: Checkpoint,
    parts: Sequence[Part],
    *,
    length: int,
    tokens_per_batch: int,
    item_bytes: int | None = None,
    gradients: bool = False,
    offload: bool = False,
    program: int = 0,
) -> MemoryEstimate:
    """Estimate what `calibrate` takes; the factors are measured (tests/calibration/test_peaks.py).

    :param length: tokens of a sequence, of parts that have none of their own
    :param item_bytes: of a weight as it is computed with (4 for float32); None: as it is stored
    :param program: bytes that this process takes already, where the model will be in the same
        memory
    """
    hidden, vocab = checkpoint.hidden_size, checkpoint.vocab_size
    counts, top_k = checkpoint.expert_counts(), checkpoint.layout.top_k(checkpoint.config)
    num_layers = num_layers_of(checkpoint.text_config)
    shared, layers, widest = _weights(checkpoint, item_bytes)
    item = item_bytes or _stored_bytes(checkpoint)
    sizes = [part.sequences * (part.length or length) for part in parts]
    tokens = sum(sizes)
    batch = max(tokens_per_batch, *(part.length or length for part in parts))

    held = sum(layers) if not offload else max(layers)
    # Of a layer and domain: three means [E, D], a few [E, E], and a row of the vocabulary's size.
    one = max(n * (3 * hidden * _SUMS + vocab) + 4 * n * n * _SUMS for n in counts.values())
    # Rows of chosen experts, gate and up and their products; and a few of each token's.
    activations = batch * (top_k * (4 * widest + 5 * hidden) + 12 * hidden) * item
    experts = max(layers)
    working = {
        "statistics of the layer at work": 2 * one,
        "activations of a batch": activations * (2 if gradients else 1),  # and their gradients
    }
    if gradients:
        working["gradients of the layer at work"] = experts + experts * 4 // item
    converted = item != _stored_bytes(checkpoint)
    read = {"the checkpoint's files while they are read": checkpoint.num_bytes if converted else 0}
    memory = {
        **({"the program": program + _LATER} if program else {}),
        "weights": shared + held,
        "statistics of all layers, kept to the end": one * len(counts) * len(parts),
        **(working if sum(working.values()) > sum(read.values()) else read),
    }
    if program and not converted and not offload and checkpoint.layout.expert is not None:
        # What is not converted stays in the pages of its file; experts are also in one piece.
        memory["experts, beside the pages of their files"] = checkpoint.expert_bytes()
    if program and item == _BFLOAT16:
        batches = sum(-(-size // batch) for size in sizes)
        memory["kernels of single shapes"] = _kernels(sum(counts.values()) * batches, gradients)
    disk = {
        "hidden states": files_needed(num_layers, gradients=gradients) * tokens * hidden * item,
        "outputs of a layer's experts": max(sizes) * top_k * hidden * item,  # of one domain
    }
    if offload:
        disk["offloaded layers"] = sum(layers)
    return MemoryEstimate(memory, disk)


def _kernels(products: int, gradients: bool) -> int:
    """Return the bytes of what oneDNN compiles and keeps on a CPU, for each number of tokens.

    :param products: experts of all layers, times batches; some have the same number of tokens
    """
    shapes = products * (3 if gradients else 1) * 2 // 3
    return min(shapes, _KERNELS) * _KERNEL


def estimate_live(
    checkpoint: Checkpoint,
    parts: Sequence[Part],
    *,
    length: int,
    step_tokens: int,
    cache: int,
    item_bytes: int | None = None,
    ranks: int = 1,
    on_host: bool = False,
    program: int = 0,
) -> MemoryEstimate:
    """Estimate what `score_live` takes: of each of some ranks, and what the host keeps besides.

    :param step_tokens: most tokens of a forward pass
    :param cache: bytes of vLLM's cache
    :param item_bytes: of a weight as it is computed with; None: as it is stored
    :param on_host: the model is in the host's memory, beside vLLM itself
    :param program: bytes that this process takes already
    """
    hidden, vocab = checkpoint.hidden_size, checkpoint.vocab_size
    counts, top_k = checkpoint.expert_counts(), checkpoint.layout.top_k(checkpoint.config)
    shared, layers, widest = _weights(checkpoint, item_bytes)
    item = item_bytes or _COMPUTED
    step = min(max(part.sequences * (part.length or length) for part in parts), step_tokens)
    one = max(n * (3 * hidden * _SUMS + vocab) + 3 * n * n * _SUMS for n in counts.values())
    memory = {
        "weights": (shared + sum(layers)) // ranks,
        "cache": cache,
        "statistics of all layers at work": one * -(-len(counts) // ranks),
        "statistics of all domains, kept to the end": one * len(counts) * len(parts),
        # the outputs of each choice, those of one choice twice, and gate, up and their product
        "activations of a step": step * ((top_k + 2) * hidden * item + 3 * widest * item)
        + step * hidden * 4,
    }
    if on_host:
        memory |= {"the program": program + _CLIENT, "vLLM itself": _VLLM}
    return MemoryEstimate(memory, {})


def _stored_bytes(checkpoint: Checkpoint) -> int:
    """Return the bytes per number of what takes most of the checkpoint, its experts."""
    largest = max(checkpoint.tensors.values(), key=lambda info: info.num_bytes)
    return largest.num_bytes // prod(largest.shape)


def _weights(checkpoint: Checkpoint, item_bytes: int | None) -> tuple[int, list[int], int]:
    """Return bytes outside the decoder layers, bytes of each layer, and the experts' width I."""
    shared, layers, widest = 0, dict[str, int](), 0
    hidden = checkpoint.hidden_size
    for name, info in checkpoint.tensors.items():
        if checkpoint.layout.own_name(name) is None:  # which is not loaded
            continue
        size = info.num_bytes if item_bytes is None else prod(info.shape) * item_bytes
        before, found, after = name.partition(_LAYER_NAME)
        if not found:
            shared += size
            continue
        layer = before + after.partition(".")[0]
        layers[layer] = layers.get(layer, 0) + size
        role = checkpoint.layout.classify(name)
        if role is not None and role.kind != "router":
            count = info.shape[0] if role.kind == "stacked" else 1
            widest = max(widest, prod(info.shape) // (count * hidden))
    return shared, list(layers.values()), widest
