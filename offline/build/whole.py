"""Whether a base has all that a model of its config has, told from names alone.

transformers fills in what is missing with random numbers and warns; what is made of such a base is
worthless. Experts are counted elsewhere (`rewrite`): here it is what lies beside them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from vllm_moe_prune.checkpoint import COMPACT_FOLDER, Checkpoint
from vllm_moe_prune.config_keys import known, num_layers_of
from vllm_moe_prune.errors import PruneError

_EMBEDDINGS = re.compile(r"(^|[._])(embed\w*|wte|tok_embeddings)(\.|$)")
_HEAD = re.compile(r"(^|\.)(\w*lm_head|embed_out|output|head|unembed\w*)\.")
_SHOWN = 3
_MOST_LAYERS = 10_000


def check_whole_base(base: Checkpoint) -> None:
    """Refuse a base in which tensors are missing.

    A layer is found to lack what every other one of its kind has, and what has no other of its
    kind is taken as it is. A compact checkpoint is for others to refuse.

    :raises PruneError: naming them
    """
    if (base.folder / COMPACT_FOLDER).is_dir():
        return
    missing = [*_layers(base), *_around(base)]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise PruneError(
            f"{base.folder} lacks {', '.join(missing[:_SHOWN])}{more}",
            hint="download the checkpoint again; its index may be of another one",
        )


def _layers(base: Checkpoint) -> list[str]:
    """Return the layers that are not there, and what is missing of others."""
    own: dict[int, frozenset[str]] = {}
    for name in base.tensors:
        layer, rest = base.layout.place(name)
        if layer >= 0 and rest:
            part = frozenset((rest,)) if base.layout.classify(name) is None else frozenset[str]()
            own[layer] = own.get(layer, frozenset()) | part
    count = known(num_layers_of, base.text_config) or 0
    named = range(count if count <= _MOST_LAYERS else 0)
    found = [f"layer {number}" for number in named if number not in own]
    kinds = Counter(own.values())
    for layer, names in sorted(own.items()):
        if kinds[names] > 1:
            continue
        lost = _lost(names, kinds)
        found += [base.layout.layer.format(layer=layer) + name for name in sorted(lost)]
    return found


def _lost(names: frozenset[str], kinds: Mapping[frozenset[str], int]) -> frozenset[str]:
    """Return what the only layer of its kind lacks of the nearest kind that has all it has."""
    larger = [kind - names for kind, count in kinds.items() if count > 1 and names < kind]
    return min(larger, key=len, default=frozenset())


def _around(base: Checkpoint) -> list[str]:
    """Return what is missing before and after the layers."""
    outside = [name for name in base.tensors if base.layout.place(name)[0] < 0]
    found = []
    if not any(_EMBEDDINGS.search(name) for name in outside):
        found.append("the embeddings of its tokens")
    text = base.text_config
    tied = text.get("tie_word_embeddings", base.config.get("tie_word_embeddings"))
    if tied is False and not any(_HEAD.search(name) for name in outside):
        found.append("lm_head.weight, which its config.json does not tie to the embeddings")
    return found
