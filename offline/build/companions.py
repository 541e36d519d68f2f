"""What else than weights and config belongs to a model, and what describes the unpruned one."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from offline.data.models import complete_folders, is_read
from offline.runs.owned import MANIFEST
from vllm_moe_prune.routing_map import MAP_FILE

# All patterns are in small letters. What fits none (tokenizer, chat template, processors, code,
# generation settings) is part of the model and is copied, and so are the terms of its use.
_TERMS = ("licen[cs]e*", "notice*", "use_policy*", "*terms*")
_ANEW = ("config.json", "readme*", f"{MAP_FILE[:11]}*", MANIFEST, ".gitattributes", ".gitignore")
_WEIGHTS = (
    "*.safetensors", "*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.gguf", "*.h5", "*.msgpack",
    "*.onnx", "*.onnx_data", "*.ot", "*.npz", "*.tflite", "*.mlmodel", "*.index.json",
    "*.index.*.json",
)  # fmt: skip
_DESCRIPTIONS = (
    # how to read the weights in another form, or what was added to them
    "consolidated*", "params.json", "adapter_config.json", "imatrix*", "*.imatrix",
    # what was measured of them, and how they were trained or quantised
    "*results*.json*", "*results*.md", "eval*.json*", "eval*.md", "trainer_state.json",
    "training_args*", "recipe.yaml", "report.html", "finetune.json", "vmprune_result.json",
    "analysis.json", "check.json", "serving.json",
    # sums of files, and pictures of the card
    "*.sha256", "*sha256sum*", "*checksum*", "*.md5", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg",
    "*.webp", "*.pdf", "*.mp4",
)  # fmt: skip


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name.lower(), pattern) for pattern in patterns)


def is_copied(name: str) -> bool:
    """Whether a file of a base's folder belongs to a pruned model as well."""
    return _fits(name, _TERMS) or not _fits(name, (*_ANEW, *_WEIGHTS, *_DESCRIPTIONS))


def copy_companions(source: Path, target: Path) -> None:
    """Copy what else belongs to a model: tokenizer, chat template, generation settings, licence."""
    for file in sorted(source.iterdir()):
        if not file.is_dir() and is_copied(file.name):
            shutil.copyfile(file, target / file.name)


def copy_read_folders(source: Path, target: Path) -> None:
    """Copy the sub-folders that readers use, all of them: weights in there are an encoder's own.

    :raises PruneError: if the hub has more of them and cannot be asked
    """
    complete_folders(source)
    for folder in sorted(source.iterdir()):
        if folder.is_dir() and is_read(folder):
            shutil.copytree(
                folder,
                target / folder.name,
                copy_function=shutil.copyfile,
                ignore=shutil.ignore_patterns(".*"),
            )


def left_behind(source: Path) -> list[str]:
    """Return what a build does not take along, but for weights and what it writes anew.

    Folders end in a stroke.
    """
    shown = [one for one in sorted(source.iterdir()) if not one.name.startswith(".")]
    folders = [f"{one.name}/" for one in shown if one.is_dir() and not is_read(one)]
    files = [one.name for one in shown if not one.is_dir() and not is_copied(one.name)]
    return [*folders, *(name for name in files if not _fits(name, (*_ANEW, *_WEIGHTS)))]
