"""An output that appears whole or not at all, and replaces nothing that is not ours."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from offline.runs.disk import one_line_if_full
from offline.runs.inputs import input_around, input_within
from offline.runs.owned import (
    first_foreign,
    read_stamp,
    refuse_foreign,
    shortened,
    stamp,
    write_manifest,
)
from offline.runs.owner import WAIT, at_work, owned, release, run_of
from offline.runs.units import gib
from vllm_moe_prune.errors import PruneError

WORK_MARKER = ".vmprune-work.json"
_NEW, _OLD, _SUFFIX = "new", "old", ".partial"
_FREE, _NOTHING = "free some space or choose another --out", "; nothing was written"
NAME_BYTES = 255  # of a file name, on nearly every file system


def check_output(out: Path, *, force: bool, inputs: Iterable[object] = ()) -> None:
    """Refuse an output folder that cannot be written; called before any work.

    ``force`` lets it replace what this program wrote, but nothing that the same command reads.

    :param inputs: what the command reads, as `input_within` takes it
    :raises PruneError: if something is there that must stay, or that another process is just
        replacing, or the parent is absent
    """
    _check_place(out, force=force, inputs=inputs)
    if os.path.lexists(out):
        if not out.is_dir():
            refuse_foreign(out)
        try:
            foreign = first_foreign(out)
        except FileNotFoundError:  # it is just being replaced
            who = f"{told}," if (told := at_work(out)) else "another process"
            raise PruneError(f"{who} works at {out}", hint=WAIT) from None
        if foreign is not None:
            refuse_foreign(out / foreign)


def check_room(out: Path, num_bytes: int) -> None:
    """Refuse to begin what its disk has no room for.

    :param num_bytes: that ``out`` will have at least; what it replaces is removed last
    :raises PruneError: with both numbers
    """
    parent = out.resolve().parent
    disk = shutil.disk_usage(parent)
    if disk.total and disk.free < num_bytes:  # some file systems say nothing of themselves
        raise PruneError(
            f"{out} will have {gib(num_bytes)} and the disk of {parent} has {gib(disk.free)} free",
            hint="free some space or choose another --out",
        )


def check_file(
    out: Path, *, force: bool, ours: Callable[[Path], bool], inputs: Iterable[object] = ()
) -> None:
    """Refuse an output file that cannot be written; as `check_output`.

    :param ours: whether a file's content is this program's
    """
    _check_place(out, force=force, inputs=inputs)
    if os.path.lexists(out):
        if out.is_dir():
            raise PruneError(f"{out} is a folder", hint="give --out the name of a file")
        if not ours(out):
            refuse_foreign(out)


def _check_place(out: Path, *, force: bool, inputs: Iterable[object]) -> None:
    if len(os.fsencode(out.name)) > NAME_BYTES:
        raise PruneError(f"the name {out.name} is too long", hint="choose a shorter --out")
    parent = out.resolve().parent
    if out.name in ("", ".."):
        raise PruneError(f"{out} is no name for an output", hint="give --out a name of its own")
    if out.is_symlink():
        raise PruneError(f"{out} is a symbolic link", hint="give --out the place that it leads to")
    if not parent.is_dir():
        raise PruneError(f"{parent} is not a folder", hint="create it first")
    if out.is_mount():
        raise PruneError(f"{out} is a disk of its own", hint="give --out a folder on it")
    if out.exists() and Path.cwd().is_relative_to(out.resolve()):
        raise PruneError(f"{out} is the folder that this runs in", hint="start it elsewhere")
    inputs = tuple(inputs)
    if (around := input_around(out, inputs)) is not None:
        raise PruneError(f"{out} lies in {around}, which is read", hint="choose another --out")
    clear_stale(out)
    if not os.path.lexists(out):
        return
    read = input_within(out, inputs)
    if not force:
        more = "" if read else " or add --force"
        raise PruneError(f"{out} already exists", hint=f"choose another --out{more}")
    if read is not None:
        raise PruneError(f"{out} would replace {read}", hint="choose another --out")


@contextmanager
def staged(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Give a folder to fill; it becomes ``out`` when the block ends well.

    With ``force`` an output of ours at ``out`` is replaced only after the new one is complete.

    :raises PruneError: as `check_output` and `owned`, and when the disk is full
    """
    check_output(out, force=force)
    with owned(out), one_line_if_full(out, _FREE, _NOTHING), working(out) as work:
        new = work / _NEW
        new.mkdir()  # with the mode of any new folder, which the working folder has not
        yield new
        write_manifest(new, run=run_of(out))
        check_output(out, force=force)  # all this took time
        put(new, out, work)


def write_file(out: Path, content: str, *, force: bool, ours: Callable[[Path], bool]) -> None:
    """Write one file, whole or not at all.

    :raises PruneError: as `check_file`, and when the disk is full
    """
    check_file(out, force=force, ours=ours)
    with owned(out), one_line_if_full(out, _FREE, _NOTHING), working(out) as work:
        new = work / _NEW
        new.write_text(content, encoding="utf-8")
        new.replace(out)


@contextmanager
def working(out: Path) -> Iterator[Path]:
    """Give a folder beside ``out`` with a name that nobody knew before; it is removed afterwards.

    It is marked, and locked for as long as this process lives: what a killed one left is told
    from what is in use, and from what is not ours.
    """
    clear_stale(out)
    prefix = f".{shortened(out.name)}."
    work = Path(tempfile.mkdtemp(prefix=prefix, suffix=_SUFFIX, dir=out.parent))
    lock: IO[str] | None = None
    try:
        lock = _mark(work, out)
        yield work
    finally:
        _clear(work, out)
        if lock is not None:
            lock.close()


def put(new: Path, out: Path, work: Path) -> None:
    """Give ``new`` its name; what is there goes into the working folder, and back if that fails."""
    if os.path.lexists(out):
        out.rename(work / _OLD)
    new.rename(out)


def link(source: str | Path, target: str | Path) -> None:
    """Give a file a second name where the disk can: its bytes are not written again."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def clear_stale(out: Path) -> None:
    """Remove the working folders of killed runs for this output.

    One that was killed between taking the old output away and giving the new one its name has
    the old one still: that is put back.
    """
    with suppress(OSError):  # a parent that may not be listed has nothing to clear
        for entry in sorted(os.scandir(out.parent), key=lambda entry: entry.name):
            ours = entry.name.startswith(f".{shortened(out.name)}.")
            if ours and entry.name.endswith(_SUFFIX) and entry.is_dir(follow_symlinks=False):
                _clear_if_left(Path(entry.path), out)
    if out.parent.is_dir():
        release(out)


def clear_left(works: Iterable[Path], *, ours: bool = False) -> None:
    """Remove those of some working folders that killed runs left, whatever they were for.

    :param ours: they lie where nobody else writes, so that one without a marker is a run's, too
    """
    for work in sorted(works):
        told = read_stamp(work / WORK_MARKER) if work.is_dir() else None
        name = told.get("work_for") if told is not None else None
        if told is None and ours:
            name = work.name.removeprefix(".").removesuffix(_SUFFIX).rpartition(".")[0]
        if isinstance(name, str) and (name := Path(name).name):
            clear_stale(work.with_name(name))


def _mark(work: Path, out: Path) -> IO[str]:
    """Write the marker and lock it; it has its name only when it is locked."""
    unnamed = work / f"{WORK_MARKER}.tmp"
    lock = unnamed.open("w")
    with suppress(OSError):  # not every file system has locks; then nothing is ever cleared
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.write(stamp(work_for=out.name))
    lock.flush()
    unnamed.rename(work / WORK_MARKER)
    return lock


def _clear_if_left(work: Path, out: Path) -> None:
    told = read_stamp(work / WORK_MARKER)
    if told is None:
        _clear_if_empty(work, out)
    if told is None or told.get("work_for") != out.name:
        return
    with suppress(OSError), (work / WORK_MARKER).open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an error: somebody works there
        _clear(work, out)


def _clear_if_empty(work: Path, out: Path) -> None:
    """Remove one of a run that was killed before the marker had its name, or after it was gone.

    Whoever has just made it works there: then it stays.
    """
    begin = re.escape(f".{shortened(out.name)}.")
    unnamed = work / f"{WORK_MARKER}.tmp"
    if not re.fullmatch(begin + r"\w{8}" + re.escape(_SUFFIX), work.name):
        return
    with suppress(OSError, PruneError), owned(out.with_name(out.name.removesuffix(".run"))):
        if {entry.name for entry in os.scandir(work)} <= {unnamed.name}:
            unnamed.unlink(missing_ok=True)
            work.rmdir()


def _clear(work: Path, out: Path) -> None:
    """Remove a working folder, its marker last; an old output with no new one is put back."""
    old = work / _OLD
    if os.path.lexists(old) and not os.path.lexists(out):
        old.rename(out)
    for name in (_NEW, _OLD):
        _remove(work / name)
    with suppress(OSError):  # what cannot be removed stays marked
        (work / f"{WORK_MARKER}.tmp").unlink(missing_ok=True)
        if [entry.name for entry in os.scandir(work)] in ([], [WORK_MARKER]):
            (work / WORK_MARKER).unlink(missing_ok=True)
            work.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
