"""Which kind of router a map gives to layers that lose experts: sliced, mapped, or by itself.

Where experts are substituted it stays what it is.
"""

from __future__ import annotations

from typing import Literal

from offline.maps.moe_shape import MoeShape
from vllm_moe_prune.errors import PruneError

RouterKind = Literal["auto", "sliced", "mapped"]
ROUTER_HELP = (
    "what becomes of routers: sliced loses the rows of dropped experts, which any reader opens and "
    "is not exact where the model does not renormalise its top-k weights; mapped keeps them all, "
    "exact and for vLLM alone; auto, if not given, is sliced where that is exact"
)
SUBSTITUTE_HELP = (
    "let the router go on choosing among all experts, with the mean output of each in place of "
    "those not kept; for vLLM alone (docs/substituted.md)"
)


def given_kind(value: object) -> object:
    """Return None for `auto`, which is what is done if nothing is given."""
    return None if value == "auto" else value


def slices(shape: MoeShape, kind: RouterKind) -> bool:
    """Whether routers whose map selects distinct experts are sliced."""
    if kind == "auto":
        # A router that chooses groups first cannot be mapped: it can only be sliced.
        return shape.slices or shape.num_groups > 1
    return kind == "sliced"


def check_substitute(**others: object) -> None:
    """Refuse another fate beside --substitute, or a router of another kind.

    :param others: name of a flag -> what is given, None if nothing is
    :raises ValueError: naming the first that is given
    """
    for name, value in others.items():
        if value is not None:
            raise ValueError(
                f"--substitute leaves the router as it is and drops nothing; leave out --{name}"
            )


def check_router(shape: MoeShape, kind: RouterKind) -> None:
    """Refuse a mapped router where the model's cannot be.

    :raises PruneError: naming the reason
    """
    if kind != "mapped" or (shape.mappable and shape.num_groups == 1):
        return
    why = (
        f"first chooses among {shape.num_groups} groups"
        if shape.num_groups > 1
        else "does more than to choose the best scores"
    )
    raise PruneError(
        f"--router mapped: the router of this {shape.model_type} model {why}, and no map can act "
        "on its scores",
        hint="leave it out: it can only be sliced",
    )
