"""The runs that lie in a folder: how large they are, and which of them are over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from offline.runs.output import clear_left
from offline.runs.owned import MANIFEST, read_stamp, run_path, settings_digest
from offline.runs.owner import at_work, owned, release
from offline.runs.resume import is_run, remove_run
from vllm_moe_prune.errors import PruneError

State = Literal["finished", "unfinished", "at work", "unknown"]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """``OUT.run``: what one run keeps.

    :ivar state: ``finished`` where the output says that it is this run's; ``unknown`` where there
        is an output that does not say whose it is, as of earlier versions
    :ivar told: which process works there
    """

    folder: Path
    num_bytes: int
    state: State
    told: str = ""


def runs_in(folder: Path) -> list[RunFolder]:
    """Return the runs that lie in a folder, by name.

    :raises PruneError: if it is no folder
    """
    if not folder.is_dir():
        raise PruneError(f"{folder} is not a folder", hint="give the one that your outputs lie in")
    found = (one for one in sorted(folder.glob("*.run")) if is_run(one))
    return [_described(one) for one in found]


def clean(folder: Path) -> Iterator[RunFolder]:
    """Remove what is finished, and yield it; also what killed commands left beside outputs.

    A run that somebody works at, or that holds a file of the user's, stays.

    :raises PruneError: as `runs_in`
    """
    for one in runs_in(folder):
        if one.state != "finished":
            continue
        with owned(_out_of(one.folder)):
            if remove_run(one.folder):
                yield one
    clear_left(folder.glob(".*.partial"))
    for lock in sorted(folder.glob(".*.vmprune-lock")):
        told = read_stamp(lock)
        if told is not None and isinstance(name := told.get("work_at"), str):
            release(folder / Path(name).name)


def _described(folder: Path) -> RunFolder:
    out = _out_of(folder)
    size = sum(
        Path(top, name).lstat().st_size for top, _, files in os.walk(folder) for name in files
    )
    if (told := at_work(out)) is not None:
        return RunFolder(folder, size, "at work", told)
    if not out.exists():
        return RunFolder(folder, size, "unfinished")
    whose = (read_stamp(out / MANIFEST) or {}).get("run")
    if whose is None:
        return RunFolder(folder, size, "unknown")
    return RunFolder(folder, size, "finished" if whose == settings_digest(folder) else "unfinished")


def _out_of(run: Path) -> Path:
    out = run.with_name(run.name.removesuffix(".run"))
    assert run_path(out) == run
    return out
