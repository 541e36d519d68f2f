"""The one place where safetensors files are opened (bytes and text: reading.py).

Bytes are read when they are asked for. Of a file that is mapped into memory, and shrinks while it
is, the system ends the process at the next byte that is gone; read like this it is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import DAMAGED, check_file, reason

if TYPE_CHECKING:
    from numpy.typing import NDArray


def open_tensors(file: Path, framework: str = "pt", what: str = "", *, mapped: bool = False) -> Any:
    """Open a safetensors file, whose header is checked; a context that gives tensors by name.

    :param framework: ``pt`` or ``np``, as safetensors calls them
    :param what: it is, in what is said of a mistake, with a space behind it
    :param mapped: map it into memory, where only parts of its tensors may be wanted
    :raises PruneError: as `reading.opened`, or if it is damaged
    """
    from safetensors import safe_open

    check_file(file, what)
    how = {"backend": "pread"} if not mapped and can_read(safe_open) else {}
    with readable(file, what):
        return safe_open(file, framework=framework, **how)


def can_read(safe_open: Any) -> bool:
    """Return whether safetensors can read a file, and not only map it, as from version 0.8 on."""
    return "backend" in (safe_open.__text_signature__ or "")


@contextmanager
def readable(file: Path, what: str = "") -> Iterator[None]:
    """Say in one line what is wrong with a safetensors file that a block reads.

    :raises PruneError: if it is damaged, or became shorter
    """
    from safetensors import SafetensorError

    try:
        yield
    except PruneError:
        raise
    except (SafetensorError, OSError, *DAMAGED) as error:
        raise PruneError(f"{what}{file} is damaged: {reason(error)}") from None


def metadata_of(file: Path, what: str = "") -> dict[str, str]:
    """Return what the header of a safetensors file says beside its tensors.

    :raises PruneError: as `open_tensors`
    """
    with open_tensors(file, "np", what) as stored:
        return dict(stored.metadata() or {})


def read_arrays(file: Path, what: str = "") -> dict[str, NDArray[Any]]:
    """Return name -> array of a safetensors file, all in memory.

    :raises PruneError: as `open_tensors`, or for a dtype that numpy lacks
    """
    return _all(file, "np", what)


def read_tensors(file: Path, what: str = "") -> dict[str, Any]:
    """Return name -> torch tensor of a safetensors file, all in memory.

    :raises PruneError: as `open_tensors`
    """
    return _all(file, "pt", what)


def _all(file: Path, framework: str, what: str) -> dict[str, Any]:
    with open_tensors(file, framework, what) as stored, readable(file, what):
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
