"""A folder that appears whole or not at all."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_moe_prune.errors import PruneError


def check_absent(out: Path, *, force: bool) -> None:
    """Refuse to write where something is already.

    :raises PruneError: if ``out`` exists and ``force`` is not given, or its parent is absent
    """
    if out.exists() and not force:
        raise PruneError(f"{out} already exists", hint="choose another --out or add --force")
    if not out.resolve().parent.is_dir():
        raise PruneError(f"{out.resolve().parent} is not a folder", hint="create it first")


@contextmanager
def staged(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Give a folder ``OUT.partial`` to fill; it becomes ``out`` when the block ends well.

    What a killed run left in ``OUT.partial`` is removed first. With ``force`` an existing ``out``
    is replaced only after the new one is complete.

    :raises PruneError: as `check_absent`, and when the disk is full
    """
    check_absent(out, force=force)
    partial = out.with_name(out.name + ".partial")
    _remove(partial)
    partial.mkdir()
    try:
        yield partial
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PruneError(
                f"no space left on the disk of {out.resolve().parent}; nothing was written",
                hint="free some space or choose another --out",
            ) from None
        raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if out.exists():
        old = out.with_name(out.name + ".replaced")
        _remove(old)
        out.rename(old)
        partial.rename(out)
        _remove(old)
    else:
        partial.rename(out)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
