"""What a repository on the hub has of ours: a map alone, or a checkpoint of any form.

Only what is needed is fetched, and weights last: of a repository that is asked for its map,
kilobytes.
"""

from __future__ import annotations

import glob
from dataclasses import replace
from pathlib import Path

from vllm_moe_prune.checkpoint import COMPACT_FOLDER, INDEX_FILE, Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub import HubReference, fetch, parse, snapshot_of
from vllm_moe_prune.routing_map import MAP_FILE, MATRIX_FILE, RoutingMap

MAP_FILES = (MAP_FILE, MATRIX_FILE)
_COMPACT_INDEX = f"{COMPACT_FOLDER}/{INDEX_FILE}"
_FACTS = ("config.json", INDEX_FILE, _COMPACT_INDEX, *MAP_FILES)


def load_map(path: Path) -> RoutingMap:
    """Read a map from its folder, its JSON file, or the hub's ``Org/Name[@revision]``.

    :raises PruneError: as `RoutingMap.load` and `hub.fetch`
    """
    reference = parse(str(path))
    if reference is not None:
        path = fetch(reference, MAP_FILES, bars=False)
    return RoutingMap.load(path)


def fetch_facts(reference: HubReference, cache: Path | None = None) -> Path:
    """Bring what can be checked before the weights of a checkpoint come; return its folder.

    :param cache: as `hub.fetch`
    :raises PruneError: as `hub.fetch`
    """
    return fetch(reference, _FACTS, bars=False, cache=cache)


def fetch_weights(checkpoint: Checkpoint) -> None:
    """Download the weights that a snapshot of the hub does not have yet, with the hub's progress.

    They are of the snapshot's commit, and go into the cache that it lies in.

    :param checkpoint: of another folder it is left as it is
    :raises PruneError: as `hub.fetch`
    """
    folder = checkpoint.folder
    reference = snapshot_of(folder)
    if reference is None:
        return
    files = dict.fromkeys(tensor.file for tensor in checkpoint.stored.values())
    missing = [file.relative_to(folder).as_posix() for file in files if not file.exists()]
    if missing:
        wanted = [f"/{glob.escape(name)}" for name in missing]
        fetch(reference, wanted, cache=folder.absolute().parents[2])


def pruned_facts(model: str, revision: str | None = None) -> Path | None:
    """Return the folder of a pruned checkpoint, with what tells its form, by folder or name.

    None of any other model, also where the hub does not say.
    """
    reference, folder = parse(model), Path(model)
    if reference is not None:
        reference = replace(reference, revision=revision)
        try:
            fetch(reference, [_COMPACT_INDEX, *MAP_FILES], bars=False)
            folder = fetch_facts(reference)
        except PruneError:  # whatever is wrong, who loads the model will meet it
            return None
    is_pruned = (folder / MAP_FILE).exists() or (folder / COMPACT_FOLDER).is_dir()
    return folder if is_pruned else None


def is_compact(model: str, revision: str | None = None) -> bool:
    """Whether a folder, or the hub's ``Org/Name``, is a compact checkpoint.

    No where the hub does not say.
    """
    reference = parse(model)
    if reference is None:
        return (Path(model) / COMPACT_FOLDER).is_dir()
    try:
        wanted = replace(reference, revision=revision)
        folder = fetch(wanted, [_COMPACT_INDEX], bars=False)
    except PruneError:  # whatever is wrong, who loads the model will meet it
        return False
    return (folder / _COMPACT_INDEX).exists()
