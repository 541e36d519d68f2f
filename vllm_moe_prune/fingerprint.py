"""`BaseFingerprint`: which checkpoint something was made for, by content and not by path."""

from __future__ import annotations

import functools
import logging
import os
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOG = logging.getLogger(__name__)
VERIFY = "VMPRUNE_VERIFY"  # environment variable: it reaches the children of a command, too


class BaseFingerprint(BaseModel):
    """Which base checkpoint a map was made for, by content and not by path.

    What was written before there was a digest of weights has none, and neither has a model of the
    hub of which only headers are here: then the rest is compared.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: str  # sha256 of those config.json entries that shape the network
    index: str  # sha256 of all tensor names, dtypes and shapes
    routers: str  # sha256 of the first and the last router's weights: tells finetunes apart
    weights: str | None = None  # of sampled bytes of all tensors (weights_digest.py)
    whole: str | None = None  # of all bytes of all tensors, where --verify asked for it
    name: str = ""  # for people; not compared

    def matches(self, other: BaseFingerprint) -> bool:
        """Whether both are of the same checkpoint, wherever it lies."""
        return self.difference(other) is None

    def difference(self, other: BaseFingerprint) -> str | None:
        """Return the first field by which two checkpoints are not the same; None if none is."""
        return next(self._differences(other), None)

    def _differences(self, other: BaseFingerprint) -> Iterator[str]:
        for field in ("config", "index", "routers", "weights", "whole"):
            own, others = getattr(self, field), getattr(other, field)
            if own != others and not (field in ("weights", "whole") and None in (own, others)):
                yield field

    def note_unknown(self, what: str, other: BaseFingerprint) -> None:
        """Say it, once, where weights could not be compared.

        :param what: was made for this base
        :param other: the checkpoint at hand
        """
        if self.weights is None and other.weights is not None:
            _note(
                f"{what}: made before weights were told apart; if all other than its config, its "
                "names and two routers changed since, nobody notices"
            )
        if os.environ.get(VERIFY) and self.whole is None and other.whole is not None:
            _note(f"{what}: made without --verify; sampled bytes of the weights were compared")


@functools.cache
def _note(text: str) -> None:
    _LOG.warning("note: %s", text)
