"""What a command left, so that two runs of it can be compared."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from offline.runs.owned import MANIFEST

_DRAWN = ("report.html", MANIFEST)  # of what is compared, with the times that it took
_TIMED = ("vmprune_result.json", "recovery.json", "finetune.json")
_TIMES = ("seconds", "peak_bytes")

State = dict[str, str]


def state(place: Path) -> State:
    """Return what lies in a folder, by name: digests of an output, names alone of a run."""
    return {
        file.relative_to(place).as_posix(): _digest(file, place)
        for file in sorted(place.rglob("*"))
        if not file.is_dir() or not any(file.iterdir())
    }


def output(found: State) -> State:
    """Return what is of the output alone."""
    return {name: digest for name, digest in found.items() if name.startswith("out/")}


def difference(found: State, wanted: State) -> str:
    """Name the files that are not as they should be; nothing if all are."""
    wrong = []
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            what = "missing" if name not in found else "left" if name not in wanted else "other"
            wrong.append(f"{name} is {what}")
    return ", ".join(wrong)


def _digest(file: Path, place: Path) -> str:
    if not file.is_relative_to(place / "out") or file.name in _DRAWN or file.is_dir():
        return ""
    content = file.read_bytes()
    if file.name in _TIMED:
        content = json.dumps(_without_times(json.loads(content))).encode()
    return hashlib.sha256(content).hexdigest()


def _without_times(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _without_times(v) for k, v in node.items() if k not in _TIMES}
    return [_without_times(one) for one in node] if isinstance(node, list) else node
