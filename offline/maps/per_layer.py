"""Numbers of layers as a user writes them: `1` or `0-14:2,15-29:1`; first of all the top-k."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from vllm_moe_prune.errors import PruneError

_PART = re.compile(r"(\d+)(?:-(\d+))?:(\d+)")


def parse_numbers(flag: str, does: str, text: str, own: Mapping[int, int]) -> dict[int, int]:
    """Read a number for all layers, or for ranges of layers; the others have their own.

    :param flag: whose value the text is, and ``does`` what a layer does with so many experts
    :param own: decoder layer that has experts -> its number where the text names none
    :raises PruneError: naming the part that is wrong
    """
    layers = tuple(own)
    if text.strip().isdigit():
        return dict.fromkeys(layers, _at_least_one(text.strip(), f"{flag} {text.strip()}", does))
    found: dict[int, int] = {}
    for part in (piece.strip() for piece in text.split(",")):
        for layer in _layers_of(flag, part, layers):
            if layer in found:
                raise PruneError(f"{flag} {part}: layer {layer} is given twice")
            found[layer] = _at_least_one(part.rpartition(":")[2], f"{flag} {part}", does)
    return {layer: found.get(layer, number) for layer, number in own.items()}


def _layers_of(flag: str, part: str, layers: Sequence[int]) -> Sequence[int]:
    match = _PART.fullmatch(part)
    if match is None:
        raise PruneError(
            f"{flag}: {part!r} is neither a number nor LAYER:K nor FIRST-LAST:K",
            hint=f"for example {flag} 1, or {flag} 0-14:2,15-29:1",
        )
    first, last = int(match[1]), int(match[2] or match[1])
    if first > last:
        raise PruneError(f"{flag} {part}: {first} is after {last}")
    for end in (first, last):
        if not layers[0] <= end <= layers[-1]:
            raise PruneError(
                f"{flag} {part}: no layer {end}; layers {layers[0]} to {layers[-1]} have experts"
            )
    return [layer for layer in layers if first <= layer <= last]


def _at_least_one(number: str, where: str, does: str) -> int:
    if int(number) < 1:
        raise PruneError(f"{where}: a layer {does} at least one expert")
    return int(number)


def top_k_by_layer(
    top_k: int | str | Mapping[int, int] | None, own: Mapping[int, int]
) -> dict[int, int]:
    """Return the top-k of every layer from any way of giving it; the others keep the model's own.

    :param top_k: for all layers; by layer; or as text: a number, or parts ``FIRST-LAST:K`` and
        ``LAYER:K`` with commas between them
    :param own: decoder layer that has experts -> the model's top-k
    :returns: decoder layer -> active experts per token
    :raises PruneError: naming the part of the text that is wrong, or the layer that is unknown
    """
    if top_k is None:
        return dict(own)
    if not isinstance(top_k, Mapping):
        return parse_numbers("--top-k", "activates", str(top_k), own)
    unknown = sorted(top_k.keys() - own.keys())
    if unknown:
        raise PruneError(f"--top-k: layer {unknown[0]} has no experts")
    return {**own, **top_k}
