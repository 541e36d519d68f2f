"""How the names of draft (MTP) layers begin, in all families and wherever they were put."""

from __future__ import annotations

import functools
from collections.abc import Iterable

_STEMS = ("", "model.", "language_model.", "language_model.model.", "model.language_model.")
_USUAL = "mtp."


@functools.cache
def draft_beginnings(prefix: str | None) -> tuple[str, ...]:
    """Return what begins names of draft layers; of families that have none as well.

    So a draft layer is never taken for something that pruning may leave as it is.

    :param prefix: what the family's own begin with, if it is not a number that goes on
    """
    return tuple(stem + one for one in {_USUAL, _own(prefix or _USUAL)} for stem in _STEMS)


def draft_names_in(names: Iterable[str], prefix: str, layer: str) -> tuple[str, str]:
    """Return the prefix and the template of draft layers as a checkpoint has them.

    :param layer: what draft layers' names have in place of a decoder layer's
    """
    first = tuple(stem + _own(layer).partition("{")[0] for stem in _STEMS)
    found = next((name for name in names if name.startswith(first)), None)
    if found is None:
        return prefix, layer
    stem = next(stem for stem, one in zip(_STEMS, first, strict=True) if found.startswith(one))
    return stem + _own(prefix), stem + _own(layer)


def _own(name: str) -> str:
    return name.removeprefix("model.")
