"""`OUT.run`: the folder in which a run keeps what lets it continue after a kill."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from offline.runs.inputs import input_within
from offline.runs.output import NAME_BYTES, check_output, clear_left, clear_stale, put, working
from offline.runs.owned import (
    FOREIGN_HINT,
    SETTINGS,
    first_foreign,
    read_json,
    read_stamp,
    run_path,
    settings_digest,
    stamp,
)
from offline.runs.owner import opened
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import HALF_WRITTEN, write_atomic
from vllm_moe_prune.reading import parse_json

RUN_MARKER = ".vmprune-run.json"
# What runs of all kinds keep at the top of their folder, whole or as a killed one leaves it.
_NAMES = re.compile(
    r"(settings\.json|(evaluations|texts|speeds)\.jsonl|routing_map\.(json|safetensors)|scores|base\.json"
    r"|result(\.json)?|on-result|round-\d+|cells\.json|(model|base)-(tuned|trained\.json)"
    r"|(model|base)-tuned\.finetune\.run|step-\d+)(\.(partial|replaced|deleted))?"
    r"|answers\.jsonl?|(base|pruned)\.log|teacher"
    r"|\.[\w.-]+\.(tmp|partial)|\.vmprune-run\.json"
)
_OF_WEIGHTS = ("weights", "whole")  # in a base's fingerprint
# What may be in the folders of a run; in all others lies an output, which says itself what it has.
_INSIDE = (
    (
        re.compile(r"round-\d+"),
        re.compile(
            r"(scores|map|pruned|tuned)(\.deleted)?|(pruned|tuned|round|seconds)\.json"
            r"|tuned\.finetune\.run|\.[\w.-]+\.(tmp|partial)"
        ),
    ),
    (re.compile(r"[\w-]+\.finetune\.run"), _NAMES),
    (re.compile(r"teacher"), re.compile(r"[0-9a-f]{16}|\.[\w.-]+\.partial")),
    (re.compile(r"on-result"), re.compile(r"evaluations\.jsonl|\.[\w.-]+\.tmp")),
    # A state of accelerate, of one process or of several.
    (re.compile(r"step-\d+"), re.compile(r"[\w.-]+\.(bin|pkl|pt|safetensors|json|distcp)|[\w-]+")),
)


def check_outputs(out: Path, *, force: bool, inputs: Iterable[object] = ()) -> None:
    """Refuse what cannot be written of a command that has a run: ``OUT`` as well as ``OUT.run``.

    :param inputs: as `check_output`
    :raises PruneError: as `check_output` does, or if ``OUT.run`` is not a run's, or holds an input
    """
    inputs = tuple(inputs)
    check_output(out, force=force, inputs=inputs)
    check_run(out, inputs=inputs)


def check_run(out: Path, *, inputs: Iterable[object] = ()) -> None:
    """Refuse an ``OUT.run`` that cannot be written, before any work.

    :raises PruneError: if it is not a run's, or holds an input
    """
    folder = run_path(out)
    read = input_within(folder, inputs)
    if read is not None:
        raise PruneError(
            f"{read} lies in {folder}, which this run writes", hint="choose another --out"
        )
    _check_run(folder)


def run_folder(
    out: Path,
    identity: dict[str, Any],
    *,
    force: bool,
    upgrade: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    otherwise: str = "choose another --out, or add --force to start anew",
) -> Path:
    """Return ``OUT.run``, made if it is not there.

    :param identity: the settings and the base that results depend on
    :param otherwise: what to do where another run is kept
    :param upgrade: takes an identity as an earlier version wrote it, and returns it as it is now
    :raises PruneError: if the folder is not a run's, or holds another run and ``force`` is not
        given, or holds something that no run wrote where ``force`` would remove it
    """
    folder = run_path(out)
    _check_run(folder)
    text = json.dumps(identity, indent=2, sort_keys=True) + "\n"
    identity_now = parse_json(text, "the settings of this run")
    before = read_json(folder / SETTINGS)
    earlier = (before, upgrade(before)) if isinstance(before, dict) else ()
    if (same := _same(identity_now, earlier)) is not None:
        if not _is_marked(folder):  # an earlier version began it
            write_atomic(folder / RUN_MARKER, stamp(run_of=out.name))
        _clear_half_written(folder)
        write_atomic(folder / SETTINGS, json.dumps(same, indent=2, sort_keys=True) + "\n")
        opened(out, settings_digest(folder))
        return folder
    if folder.exists() and any(folder.iterdir()):
        if not force:
            raise PruneError(
                f"{folder} holds a run with other settings or another base",
                hint=otherwise,
            )
        _refuse(folder, _foreign(folder))
    _begin(folder, text, out)
    opened(out, settings_digest(folder))
    return folder


def _clear_half_written(folder: Path) -> None:
    """Remove what a run that was killed was just writing."""
    for file in folder.rglob(".*.tmp"):
        if HALF_WRITTEN.fullmatch(file.name) and file.is_file():
            file.unlink()
    clear_left(folder.rglob(".*.partial"), ours=True)


def _same(now: dict[str, Any], earlier: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Return an identity, with what an equal one knows besides; None if none is equal.

    Digests of weights that only one of them has are not compared: earlier versions wrote none, and
    of a model of the hub that is not here yet there are none.
    """
    for before in earlier:
        if (whole := _filled(now, before)) == _filled(before, now):
            return whole
    return None


def _filled(fields: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return settings with those digests of weights that only the other ones have."""
    found = dict(fields)
    for name, value in fields.items():
        known = other.get(name)
        if isinstance(value, dict) and isinstance(known, dict) and "routers" in value:
            lacks = (digest for digest in _OF_WEIGHTS if value.get(digest) is None)
            found[name] = {**value, **{digest: known.get(digest) for digest in lacks}}
    return found


def remove_run(folder: Path) -> bool:
    """Remove the folder of a run that is over; one with something of the user's in it stays.

    :returns: whether it is gone
    """
    if not _is_marked(folder) or _foreign(folder) is not None:
        return False
    with working(folder) as work:
        folder.rename(work / "new")  # gone at once, and removed with the working folder
    return True


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint of a run, which is never seen in part."""
    gone = checkpoint.with_name(checkpoint.name + ".deleted")
    if checkpoint.exists():
        shutil.rmtree(gone, ignore_errors=True)
        checkpoint.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def is_run(folder: Path) -> bool:
    """Whether a folder is one that a run keeps."""
    return folder.is_dir() and not folder.is_symlink() and _is_marked(folder)


def _begin(folder: Path, settings: str, out: Path) -> None:
    """Put a new run in place of what is there, as a whole: no old log beside new settings."""
    with working(folder) as work:
        new = work / "new"
        new.mkdir()
        write_atomic(new / RUN_MARKER, stamp(run_of=out.name))
        write_atomic(new / SETTINGS, settings)
        put(new, folder, work)


def _check_run(folder: Path) -> None:
    """Refuse a place where no run may be: what is there is the user's."""
    if len(os.fsencode(folder.name)) > NAME_BYTES:
        raise PruneError(f"the name {folder.name} is too long", hint="choose a shorter --out")
    if folder.is_symlink():
        raise PruneError(f"{folder} is a symbolic link", hint="choose another --out")
    clear_stale(folder)
    if folder.is_dir():
        if not _is_marked(folder) and not _is_runs(folder / SETTINGS):
            _refuse(folder, min((entry.name for entry in folder.iterdir()), default=None))
    elif folder.exists():
        raise PruneError(f"{folder} is not a folder", hint=FOREIGN_HINT)


def _is_marked(folder: Path) -> bool:
    return read_stamp(folder / RUN_MARKER) is not None


def _foreign(folder: Path, names: re.Pattern[str] = _NAMES) -> str | None:
    """Return the first file, by name, that no run wrote.

    :param names: of what may be in the folder
    """
    for name in sorted(entry.name for entry in folder.iterdir()):
        inner = folder / name
        if not names.fullmatch(name) or (name == SETTINGS and not _is_runs(inner)):
            return name
        if inner.is_symlink():
            return name
        if not inner.is_dir() or name.endswith((".deleted", ".partial")):
            continue
        allowed = next((what for where, what in _INSIDE if where.fullmatch(name)), None)
        found = first_foreign(inner) if allowed is None else _foreign(inner, allowed)
        if found is not None:
            return f"{name}/{found}"
    return None


def _is_runs(settings: Path) -> bool:
    """Whether these are a run's settings: many a program has a file of that name."""
    fields = read_json(settings)
    return isinstance(fields, dict) and ("recipe" in fields or "examples" in fields)


def _refuse(folder: Path, foreign: str | None) -> None:
    if foreign is not None:
        raise PruneError(
            f"{folder} is where a run is kept, and {foreign} in it is not one's", hint=FOREIGN_HINT
        )
