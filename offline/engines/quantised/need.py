"""What a quantised checkpoint takes where it is computed with outside of vLLM: all of it decoded.

Told from headers, and said before anything is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from offline.engines.quantised.forms import ASIDE, form_of, modules_of, unknown
from offline.runs.memory import free_bytes
from offline.runs.units import gib
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.quantisation import quantiser_of
from vllm_moe_prune.roles import STACKED_PARTS


@dataclass(frozen=True, slots=True)
class Dequantised:
    """A quantised checkpoint's formats, its bytes on the disk, and how many numbers it has."""

    name: str
    forms: tuple[str, ...]
    stored: int
    numbers: int
    own_item: int  # bytes of a number in the dtype that config.json names

    def size(self, dtype: str) -> int:
        """Return the bytes of all numbers in a dtype; ``auto`` is the checkpoint's."""
        return self.numbers * {"float32": 4, "bfloat16": 2}.get(dtype, self.own_item)

    def line(self, dtype: str, *, on_disk: bool = False) -> str:
        """Say what it is and what it takes, in one line.

        :param on_disk: the decoder layers stay there
        """
        return (
            f"{self.name} is quantised ({', '.join(self.forms)}): {gib(self.stored)} on disk are "
            f"dequantised to {gib(self.size(dtype))} and take that much "
            f"{'disk' if on_disk else 'memory'}"
        )


def dequantised(folder: Path) -> Dequantised | None:
    """Return what a checkpoint becomes when it is dequantised, or None if it is not quantised.

    MTP layers, and what transformers does not load, are left out.

    :raises PruneError: if something is stored in a format that is not known
    """
    if quantiser_of(folder) is None:
        return None
    base = Checkpoint.open(folder)
    layout = base.layout
    loaded = {
        name: info
        for name, info in base.tensors.items()
        if name.startswith(layout.prefix) and not layout.is_mtp(name)
    }
    forms, numbers = dict[str, None](), 0
    for module, parts in modules_of(loaded).items():
        if "" in parts or not parts.keys() - ASIDE:
            numbers += _alone(module, [prod(info.shape) for info in parts.values()], forms)
        elif (form := form_of(parts)) is None:
            raise unknown(module.rstrip("."), parts)
        else:
            numbers += form.numbers
            if "bias" in parts and "qweight" not in parts:  # of which GPTQ writes zeros
                numbers += prod(parts["bias"].shape)
            if form.codes != "plain":
                forms[form.name] = None
    config = base.text_config
    wide = "float32" in (config.get("dtype"), config.get("torch_dtype"))
    stored = sum(info.num_bytes for info in loaded.values())
    return Dequantised(base.name, tuple(forms), stored, numbers, 4 if wide else 2)


def _alone(name: str, sizes: Sequence[int], forms: dict[str, None]) -> int:
    """Return how many numbers are in tensors that are no part of a matrix."""
    blocks, scales = STACKED_PARTS
    if name.endswith(scales):
        return 0
    if name.endswith(blocks):
        forms["MXFP4"] = None
        return 2 * sum(sizes)
    return sum(sizes)


def check_dequantisable(
    folder: Path, *, dtype: str = "auto", otherwise: str | None = None, in_parts: bool = False
) -> None:
    """Refuse a quantised checkpoint that cannot be computed with outside of vLLM.

    :param otherwise: what there is to do if it does not fit in memory
    :param in_parts: it need not be in memory as a whole
    :raises PruneError: if a format is not known, or there is too little memory for the numbers
    """
    found = dequantised(folder)
    if found is None or in_parts:
        return
    if found.size(dtype) > (free := free_bytes("cpu")):
        raise PruneError(f"{found.line(dtype)}, of which {gib(free)} are free", hint=otherwise)
