"""Which tensors an expert lacks that others of its layer have.

Quantisers write a scale of an expert's inputs from what they saw of them: of an expert that their
calibration never reached there is none, and vLLM serves it with a number that was never set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.operations import COMBINABLE, TensorInfo
from vllm_moe_prune.roles import WEIGHT

Parts = Mapping[str, TensorInfo]  # part (roles.py) -> header
# decoder layer -> projection -> expert -> its parts
Matrices = Mapping[int, Mapping[str, Mapping[int, Parts]]]
Missing = Mapping[int, Mapping[int, tuple[str, ...]]]  # decoder layer -> expert -> tensors
_UNQUANTISED = {WEIGHT, "bias"}


def matrices_of(tensors: Mapping[str, TensorInfo], layout: MoeLayout) -> Matrices:
    """Return the parts of every matrix of every expert that is stored by itself."""
    found: dict[int, dict[str, dict[int, dict[str, TensorInfo]]]] = {}
    for name, info in tensors.items():
        role = layout.classify(name)
        if role is not None and role.expert is not None:
            of_layer = found.setdefault(role.layer, {}).setdefault(role.projection, {})
            of_layer.setdefault(role.expert, {})[role.part] = info
    return found


def check_alike(projections: Iterable[Mapping[int, Parts]]) -> None:
    """Refuse experts of a layer that cannot be added to one another.

    :param projections: expert -> parts of its matrix, for every projection of the layer
    :raises PruneError: naming the first matrix of another shape than the first expert's
    """
    for experts in projections:
        infos = [experts[n][WEIGHT] for n in sorted(experts) if WEIGHT in experts[n]]
        for info in infos:
            if info.shape != infos[0].shape:
                raise PruneError(
                    f"tensor {info.name} has shape {list(info.shape)}, {infos[0].name} "
                    f"{list(infos[0].shape)}: these cannot be merged",
                    hint="download the checkpoint again",
                )


def check_all_alike(matrices: Matrices) -> None:
    """Refuse a checkpoint with a layer whose experts cannot be added to one another.

    :raises PruneError: as `check_alike`
    """
    for projections in matrices.values():
        check_alike(projections.values())


def is_unquantised(parts: Parts) -> bool:
    """Whether a matrix is what it was before any quantiser, as some leave single ones."""
    return parts.keys() <= _UNQUANTISED and all(one.dtype in COMBINABLE for one in parts.values())


def missing_tensors(matrices: Matrices, layout: MoeLayout, counts: Mapping[int, int]) -> Missing:
    """Return the tensors that experts lack; experts that lack none are not there.

    All quantised matrices of a layer and projection should have the parts that any of them has, and
    every expert all projections.

    :param counts: decoder layer -> E
    """
    found: dict[int, dict[int, tuple[str, ...]]] = {}
    for layer, count in counts.items():
        if layout.form(layer).expert is None:
            continue
        projections = matrices.get(layer, {})
        wanted = {
            projection: _parts_of_any(projections.get(projection, {}).values())
            for projection in layout.form(layer).projections
        }
        for expert in range(count):
            lacks = tuple(
                layout.expert_name(layer, expert, projection, part)
                for projection, parts in wanted.items()
                for part in _lacking(projections.get(projection, {}).get(expert, {}), parts)
            )
            if lacks:
                found.setdefault(layer, {})[expert] = lacks
    return found


def _parts_of_any(matrices: Iterable[Parts]) -> tuple[str, ...]:
    """Return the parts that any quantised matrix has; those of unquantised ones without any."""
    listed = list(matrices)
    quantised = [parts for parts in listed if not is_unquantised(parts)]
    return tuple(dict.fromkeys(part for parts in quantised or listed for part in parts)) or (
        WEIGHT,
    )


def _lacking(parts: Parts, wanted: tuple[str, ...]) -> tuple[str, ...]:
    lacking = tuple(one for one in wanted if one not in parts)
    if lacking and WEIGHT in parts and not _UNQUANTISED.issuperset(wanted):
        return () if is_unquantised(parts) else lacking  # left as it was, among quantised ones
    return lacking
