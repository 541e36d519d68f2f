"""Models as commands are given them: a local folder, or ``Org/Name[@revision]`` on the hub.

A model of the hub is a snapshot in the hub's cache, brought there in two steps: what describes it,
with which all can be checked (headers of weights come over the network), and the weights when they
are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from vllm_moe_prune.checkpoint import COMPACT_FOLDER, INDEX_FILE, Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub import HubReference, fetch, parse, snapshot_of, spelled
from vllm_moe_prune.repository import fetch_weights

# Config, index, routing map and card: what `inspect` shows.
FACTS = (
    "/config.json", f"/{INDEX_FILE}", f"/{COMPACT_FOLDER}/{INDEX_FILE}", "/routing_map.*",
    "/README.md", "/hf_quant_config.json",
)  # fmt: skip
# Folders of a model that its readers use: further chat templates, processors, encoders with weights
# of their own (a tokenizer of sounds). Others, such as original/ or onnx/, have the model itself in
# another form, or pictures for its card.
READ_FOLDERS = ("*template*", "*tokenizer*", "*processor*", "*encod*", "*extractor*")
_TEXTS = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "*.py")
# With tokenizer, chat template, code and licence: all of a model but its weights. What else lies
# on the hub is not needed: pickles, GGUF, consolidated.* and other folders.
ALL_BUT_WEIGHTS = (
    *FACTS, *(f"/{name}" for name in _TEXTS), "/LICEN[CS]E*", "/NOTICE*", "/USE_POLICY*",
    *(f"/{folder}/{name}" for folder in READ_FOLDERS for name in _TEXTS),
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


def complete_folders(folder: Path) -> None:
    """Download all of the sub-folders that a model's readers use, their own weights included.

    :param folder: as `complete`
    :raises PruneError: as `complete`
    """
    reference = snapshot_of(folder)
    if reference is not None and any(is_read(one) for one in folder.iterdir() if one.is_dir()):
        wanted = [f"/{name}/{deep}" for name in READ_FOLDERS for deep in ("*", "*/*")]
        fetch(reference, wanted, cache=folder.absolute().parents[2])


def is_read(folder: Path) -> bool:
    """Whether a model's readers use a sub-folder of it."""
    name = folder.name.lower()
    return not name.startswith(".") and any(fnmatchcase(name, one) for one in READ_FOLDERS)
