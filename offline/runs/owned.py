"""What of a folder this program wrote: nothing else is ever replaced or removed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from vllm_moe_prune import __version__, reading
from vllm_moe_prune.checkpoint import COMPACT_FOLDER
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import write_atomic

MANIFEST = ".vmprune.json"
WRITER = "vllm-moe-prune"
FOREIGN_HINT = "choose another --out, or move it away"
# Put beside the rest when a folder is finished: by `report`, `check` and `eval`, or copied there
# for the report from a load test and `vmprune analyze`. Name -> fields by which it is known.
_ADDED = {
    "check.json": {"checks", "served_as"},
    "answers.json": {"rows", "verdict"},
    "serving.json": {"lifetimes", "ratios"},
    "analysis.json": {"provenance"},
    "text_quality.json": {"domains", "provenance"},
    "gates_result.json": {"gates", "model"},
}
_PAGE = "report.html"
_HALF_WRITTEN = re.compile(
    r"\.(\.vmprune\.json|README\.md|report\.html|(check|answers|text_quality|gates_result)\.json)"
    r"\.\w+\.tmp"
)
SETTINGS = "settings.json"  # of a run, in its folder
_SHORT = 200  # bytes of a name within another, which may have 255
_SAMPLE = 1 << 16  # bytes at both ends of a file that tell whether it changed
# Folders of versions without a manifest: one of these says in its provenance that it is ours ...
_SIGNATURES = (
    "routing_map.json", "scores.json", "analysis.json", "recovery.json", "vmprune_result.json",
)  # fmt: skip
# ... and every file has one of these names.
_NAMES = re.compile(
    r"routing_map\.(json|safetensors)|scores\.(json|safetensors)|analysis\.(json|html)"
    r"|recovery\.json|finetune\.json|vmprune_result\.json|check\.json|answers\.json|serving\.json|report\.html"
    r"|README\.md|config\.json|generation_config\.json|model(-\d{5}-of-\d{5})?\.safetensors"
    r"|model\.safetensors\.index\.json|tokenizer\.(json|model)|tokenizer_config\.json"
    r"|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|spiece\.model"
    r"|(hf_quant|quantize|quant)_config\.json|[\w.-]+\.tiktoken|chat_template\.(jinja|json)|(pre)?processor_config\.json"
    r"|(configuration|modeling|tokenization)_\w+\.py|(LICENSE|LICENCE|NOTICE|USE_POLICY)[\w.]*"
)
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


def stamp(**more: Any) -> str:
    """Return the content of a file that marks something as this program's."""
    return json.dumps({"written_by": WRITER, "version": __version__, **more}, indent=1) + "\n"


def read_stamp(file: Path) -> dict[str, Any] | None:
    """Return what `stamp` made; None for anything else."""
    fields = read_json(file)
    ours = isinstance(fields, dict) and fields.get("written_by") == WRITER
    return fields if ours else None


def read_json(file: Path) -> Any:
    """Return a file's JSON; None if it is absent or something else."""
    try:
        return reading.read_json(file)
    except PruneError:
        return None


def shortened(name: str) -> str:
    """Return a name to be part of another, so that the other is not too long."""
    return os.fsencode(name)[:_SHORT].decode(errors="ignore")


def run_path(out: Path) -> Path:
    """Return ``OUT.run``."""
    return out.with_name(out.name + ".run")


def settings_digest(run: Path) -> str:
    """Return what names a run by its settings; nothing where there is none."""
    try:
        return "sha256:" + hashlib.sha256(reading.read_bytes(run / SETTINGS)).hexdigest()
    except PruneError:
        return ""


def write_manifest(folder: Path, *, run: str = "") -> None:
    """Say in a hidden file which files the folder has, and how they are: the last one written.

    :param run: whose result this is, as `settings_digest` names it
    """
    files = {name: _sample(folder / name) for name in _files(folder) if name != MANIFEST}
    more = {"run": run} if run else {}
    write_atomic(folder / MANIFEST, stamp(files=files, **more))


def replace_own(folder: Path, name: str, text: str) -> bool:
    """Write a file of an output again if it is there as we wrote it; say whether it was.

    :param folder: with a manifest, which keeps what the file is now
    """
    told = read_stamp(folder / MANIFEST)
    known = told.get("files") if told is not None else None
    if told is None or not isinstance(known, dict) or known.get(name) != _sample(folder / name):
        return False
    write_atomic(folder / name, text)
    write_atomic(
        folder / MANIFEST,
        json.dumps({**told, "files": {**known, name: _sample(folder / name)}}, indent=1) + "\n",
    )
    return True


def first_foreign(folder: Path) -> str | None:
    """Return the first file, by name, that this program did not write; None if there is none.

    :param folder: an output of ours, or anything else
    """
    files, told = _files(folder), read_stamp(folder / MANIFEST)
    known = told.get("files") if told is not None else None
    if isinstance(known, dict):
        return next((name for name in files if not _is_as_written(folder, name, known)), None)
    if not any(_is_ours(folder / name) for name in _SIGNATURES if name in files):
        return next(iter(files), None)
    trained = {"recovery.json", "finetune.json"} & set(files)  # their shards name no writer
    for name in files:
        own = name.removeprefix(f"{COMPACT_FOLDER}/")
        if not _NAMES.fullmatch(own):
            return name
        if _WEIGHTS.fullmatch(own) and not trained and not _has_our_header(folder / name):
            return name
    return None


def check_page(file: Path) -> None:
    """Refuse to draw a page over one that is not ours.

    :raises PruneError: naming it
    """
    if file.exists() and not _is_our_page(file):
        refuse_foreign(file)


def refuse_foreign(path: Path) -> NoReturn:
    """Refuse to replace what holds this file.

    :raises PruneError: always
    """
    raise PruneError(f"{path} was not written by vmprune and is not replaced", hint=FOREIGN_HINT)


def _is_as_written(folder: Path, name: str, known: dict[str, Any]) -> bool:
    """Whether a file is what the manifest says, or one that we add later."""
    file = folder / name
    if name == MANIFEST or _HALF_WRITTEN.fullmatch(name):
        return True
    if known.get(name) == _sample(file):
        return True
    if name == _PAGE:
        return _is_our_page(file)
    fields = read_json(file) if name in _ADDED else None
    return isinstance(fields, dict) and fields.keys() >= _ADDED[name]


def _sample(file: Path) -> str:
    """Return what changes with a file, as good as always, without reading large ones whole."""
    if file.is_symlink():
        return f"link to {file.readlink()}"
    size = file.stat().st_size
    with file.open("rb") as stream:
        content = stream.read(_SAMPLE)
        stream.seek(max(_SAMPLE, size - _SAMPLE))
        content += stream.read(_SAMPLE)
    return f"{size} {hashlib.sha256(content).hexdigest()[:16]}"


def _is_our_page(file: Path) -> bool:
    with file.open("rb") as stream:
        return f'name="generator" content="{WRITER}'.encode() in stream.read(4096)


def _is_ours(file: Path) -> bool:
    fields = read_json(file)
    made = fields.get("provenance") if isinstance(fields, dict) else None
    return isinstance(made, dict) and str(made.get("tool", "")).startswith(WRITER)


def _has_our_header(file: Path) -> bool:
    """Whether our writer wrote these weights: a base beside which a map was put has another."""
    with file.open("rb") as stream:
        return f'"writer":"{WRITER}'.encode() in stream.read(256)


def _files(folder: Path) -> list[str]:
    """Return the paths of all files below a folder, sorted; a link is a file."""
    return sorted(_walk(folder))


def _walk(folder: Path) -> Iterator[str]:
    def fail(error: OSError) -> NoReturn:  # what cannot be seen may be the user's
        raise error

    for top, folders, files in os.walk(folder, onerror=fail):
        links = [name for name in folders if Path(top, name).is_symlink()]
        for name in (*files, *links):
            yield Path(top, name).relative_to(folder).as_posix()
