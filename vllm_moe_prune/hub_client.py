"""The hub's own client, ``huggingface_hub``, and its errors in one line each.

It is imported when something is asked of it, for it is no dependency of this package; every host
with transformers or vLLM has it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import DAMAGED

SECONDS = 10.0  # to wait for the hub's first answer, as its client does for files
_SIGN_IN = "set HF_TOKEN or run `hf auth login`"


@contextmanager
def explained(name: str, revision: str | None) -> Iterator[None]:
    """Turn the errors of the hub's client into one line each."""
    hub = client()
    try:
        yield
    except PruneError:
        raise
    except hub.errors.GatedRepoError as error:
        raise PruneError(
            f"{name} is gated on the hub, and this token may not read it",
            hint=f"accept its terms at {address()}/{name}, then {_SIGN_IN}",
        ) from error
    except hub.errors.RepositoryNotFoundError as error:
        raise PruneError(
            f"there is no folder {name} here and no model of that name on {address()}",
            hint=f"check the name; for a private model {_SIGN_IN}",
        ) from error
    except hub.errors.RevisionNotFoundError as error:
        raise PruneError(
            f"the hub's {name} has no revision {revision!r}",
            hint=f"give a branch, a tag or a commit: {address()}/{name}/tree/main lists them",
        ) from error
    except hub.errors.HfHubHTTPError as error:
        text = error.server_message or f"status {error.response.status_code}"
        raise PruneError(
            f"{address()} refuses {name}: {text.splitlines()[0]}",
            hint=_SIGN_IN if error.response.status_code in (401, 403) else "try again later",
        ) from error
    except (RuntimeError, *hub.errors.HfHubHTTPError.__bases__) as error:
        raise _broken(name, error) from error  # hf_xet, which fetches large files, raises the first
    except DAMAGED as error:
        raise PruneError(
            f"{address()} gives an answer about {name} that is none of a hub's: "
            f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
            hint="try again later; HF_ENDPOINT names the hub that is asked",
        ) from error


def _broken(name: str, error: Any) -> PruneError:
    """Say why a download stopped."""
    cache = client().constants.HF_HUB_CACHE
    if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
        return no_space(f"the download of {name} filled it")
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return PruneError(
        f"the download of {name} stopped: {first}",
        hint=f"start again: files that are whole in {cache} are kept",
    )


def no_space(why: str) -> PruneError:
    """Return the error for a disk that is too small for the hub's cache."""
    return PruneError(
        f"not enough space in {client().constants.HF_HUB_CACHE}: {why}",
        hint="set HF_HOME to a folder on a larger disk, or free some: `hf cache prune`",
    )


def address() -> str:
    """Return the hub's address: HF_ENDPOINT's, if that is set."""
    return str(client().constants.ENDPOINT)


def client() -> Any:
    """Import the hub's client.

    :raises PruneError: if it is not installed
    """
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise PruneError(
            "models by their names on the hub need huggingface_hub, which is not installed",
            hint="pip install huggingface_hub, or give the path of a local folder",
        ) from error
    return huggingface_hub
