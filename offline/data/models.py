"""Models as commands are given them: a local folder, or ``Org/Name[@revision]`` on the hub.

A model of the hub is a snapshot in the hub's cache, brought there in two steps: what describes it,
with which all can be checked (headers of weights come over the network), and the weights when they
are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vllm_moe_prune.checkpoint import COMPACT_FOLDER, INDEX_FILE, Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub import HubReference, fetch, parse, snapshot_of, spelled
from vllm_moe_prune.repository import fetch_weights

# Config, index, routing map and card: what `inspect` shows.
FACTS = (
    "/config.json", f"/{INDEX_FILE}", f"/{COMPACT_FOLDER}/{INDEX_FILE}", "/routing_map.*",
    "/README.md",
)  # fmt: skip
# With tokenizer, chat template, code and licence: all of a model but its weights. What else lies
# on the hub is not needed: pickles, GGUF, consolidated.* and folders such as original/.
ALL_BUT_WEIGHTS = (
    *FACTS, "/*.json", "/*.txt", "/*.model", "/*.tiktoken", "/*.jinja", "/*.py",
    "/LICEN[CS]E*", "/NOTICE*", "/USE_POLICY*",
)  # fmt: skip


def located(model: Path, files: Sequence[str] = ALL_BUT_WEIGHTS) -> Path:
    """Return the folder of a model; that of one on the hub has no weights yet.

    :param model: a folder, which is returned as it is, or ``Org/Name[@revision]``
    :raises PruneError: if it is neither a folder here nor a model that the hub lets one read
    """
    reference = parse(str(model))
    scheme, *place = model.parts or ("",)
    if scheme in ("http:", "https:") and not model.exists():  # a path keeps one stroke of two
        name = "/".join(place[1:3]) if len(place) > 2 else "Org/Name"
        raise PruneError(
            f"{scheme}//{'/'.join(place)} is an address, not a model", hint=f"give its name: {name}"
        )
    return model if reference is None else fetch(reference, files, bars=False)


def shadowed(model: Path) -> HubReference | None:
    """Return the model on the hub that a folder here is called like; None if it cannot be one."""
    reference = spelled(str(model))
    return reference if reference is not None and model.exists() else None


def complete(folder: Path) -> None:
    """Download the weights that a snapshot of the hub does not have yet, with the hub's progress.

    :param folder: of `located`; another folder is left as it is
    :raises PruneError: as `located`, or if there is no space for them
    """
    if snapshot_of(folder) is not None:
        fetch_weights(Checkpoint.open(folder))
