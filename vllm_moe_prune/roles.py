"""`Role`: what a tensor of an MoE block is, and the names that roles are read from.

An expert's matrix is one tensor, ``weight``, or several parts of a quantised one: values, scales,
zero points. Which parts there are is a matter of the quantiser, not of the model family.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import Literal

from vllm_moe_prune.errors import PruneError

WEIGHT = "weight"
# As FP8, compressed-tensors, ModelOpt, GPTQ and AWQ checkpoints name them (docs/checkpoints.md).
PARTS = (
    *(WEIGHT, "weight_packed", "weight_shape", "weight_g_idx", "weight_zero_point"),
    *("weight_scale", "weight_scale_inv", "weight_scale_2", "weight_global_scale"),
    *("input_scale", "input_zero_point", "input_global_scale"),
    *("qweight", "qzeros", "scales", "g_idx", "bias", "scale"),
)
# Of a quantised gate those that are one number, or have a row for each of the gate's rows. The
# others are packed along the experts, or describe the shape of what is packed.
_ROUTER_PARTS = (
    *("weight_zero_point", "weight_scale", "weight_scale_2", "weight_global_scale"),
    *("input_scale", "input_zero_point", "input_global_scale"),
)
STACKED_PARTS = ("_blocks", "_scales")  # of a stacked tensor in MXFP4, in place of it
# What stands beside a stacked tensor of another format (transformers' FP8, ModelOpt's NVFP4).
BESIDE_STACKED = (
    *("_scale_inv", "_scale", "_weight_scale_inv", "_weight_scale", "_weight_scale_2"),
    *("_input_scale", "_activation_scale"),
)
PART = "{part}"


@dataclass(frozen=True, slots=True)
class Role:
    """What a tensor of an MoE block is.

    ``expert``: of one expert, number ``expert``; ``stacked``: of all experts, which are its first
    dimension; ``router``: has one row or entry per expert. ``part`` says which of the tensors it is
    that together are one matrix: ``weight``, or one that a quantiser added.

    ``places`` are where an expert's number stands in the name, counted from its end.
    """

    kind: Literal["expert", "stacked", "router"]
    layer: int
    expert: int | None = None
    projection: str = ""
    part: str = WEIGHT
    places: tuple[int, int] | None = field(default=None, compare=False, repr=False)

    def renumbered(self, name: str, expert: int) -> str:
        """Return the name of the same tensor of another expert."""
        assert self.places is not None, f"{name} is of no single expert"
        begin, end = self.places
        return f"{name[:begin]}{expert}{name[end:]}"


@functools.cache
def name_pattern(template: str, projections: tuple[str, ...] = ()) -> re.Pattern[str]:
    """Return what reads names of a template: groups layer, expert, projection, part.

    In place of {stacked} a name may have a part of a stacked tensor, or nothing.
    """
    pattern = re.escape(template)
    pattern = pattern.replace(r"\{layer\}", r"(?P<layer>\d+)")
    pattern = pattern.replace(r"\{expert\}", r"(?P<expert>\d+)")
    pattern = pattern.replace(r"\{part\}", f"(?P<part>{'|'.join(PARTS)})")
    stacked = "|".join((*STACKED_PARTS, *BESIDE_STACKED))
    pattern = pattern.replace(r"\{stacked\}", f"(?P<part>{stacked})?")
    return re.compile(
        pattern.replace(r"\{projection\}", f"(?P<projection>{'|'.join(projections)})")
    )


def router_part(router: str, name: str, whole: str) -> str | None:
    """Return which part of a quantised gate a tensor is, or None if it is of no gate.

    :param router: the template of the gate's weight
    :param name: of the tensor, as far as the template goes; all of it is ``whole``
    :raises PruneError: for a part from which rows cannot be taken
    """
    found = name_pattern(router.removesuffix(WEIGHT) + "{part}").fullmatch(name)
    if found is None or found["part"] == "bias":  # a bias is of another architecture
        return None
    if found["part"] not in _ROUTER_PARTS:
        raise PruneError(
            f"tensor {whole}: a router that is stored like this ({found['part']}) cannot lose rows",
            hint="quantise the model again without its gates, as most recipes do",
        )
    return found["part"]
