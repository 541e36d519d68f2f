"""A disk that is full, whoever stumbles over it first."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_moe_prune.errors import PruneError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_SPACE = ("No space left", "os error 28", "Disk quota exceeded", "os error 122")
_LEFT = 1 << 20  # bytes: where there are fewer, libraries that say nothing of it mean it


@contextmanager
def one_line_if_full(place: Path, hint: str, more: str = "") -> Iterator[None]:
    """Say in one line that the disk of a place is full, where something in the block fails by it.

    safetensors and torch raise errors of their own, and torch's does not say why.

    :param more: is said as well
    :raises PruneError: in place of what the block raised
    """
    try:
        yield
    except PruneError:
        raise
    except Exception as error:
        if not _is_full(place, error):
            raise
        said = f"no space left on the disk of {place.resolve().parent}{more}"
        raise PruneError(said, hint=hint) from error


def _is_full(place: Path, error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    if any(word in str(error) for word in _NO_SPACE):
        return True
    if type(error) is not RuntimeError:  # as torch raises it
        return False
    try:
        return shutil.disk_usage(place.resolve().parent).free < _LEFT
    except OSError:
        return False
