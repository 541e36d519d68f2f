"""Mixes of text that have a name: a literal table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Entry:
    """One source of a mix; ``sequences`` None is as many as are asked for where none is named.

    :param length: tokens of a sequence
    :param pack: whether a sequence may have the end of one document and the beginning of another
    """

    name: str
    source: str
    sequences: int | None = None
    length: int | None = None
    pack: bool | None = None


# MC-Suite (arXiv 2504.05586): 256 sequences of 2048 tokens of C4's validation split, each the
# beginning of a document. This commit is the one that quantisation and pruning have long named.
_C4 = (
    "hf:allenai/c4@607bd4c8450a42878aa9ddc051a65a055450ef87/en/c4-validation.00000-of-00008.json.gz"
)
# What pruned models that are published were calibrated on (REAP, arXiv 2510.13999).
_REAP = {
    "evol-code": "hf:theblackcat102/evol-codealpaca-v1:train",
    "thoughts-code": "hf:open-r1/Mixture-of-Thoughts/code:train",
    "thoughts-math": "hf:open-r1/Mixture-of-Thoughts/math:train",
    "thoughts-science": "hf:open-r1/Mixture-of-Thoughts/science:train",
    "function-calls": "hf:Salesforce/xlam-function-calling-60k:train",
    "swe-trajectories": "hf:SWE-bench/SWE-smith-trajectories:tool",
}
MIXES: Mapping[str, tuple[Entry, ...]] = {
    # The demo's other two domains are fetched with npm, which not every machine has.
    DEFAULT: tuple(
        Entry(name, name)
        for name in ("code", "maths", "everyday", "stories", "science", "encyclopedia")
    ),
    "c4": (Entry("c4", _C4, 256, 2048, pack=False),),
    "reap": tuple(Entry(name, source, 4096, 16384, pack=True) for name, source in _REAP.items()),
}
