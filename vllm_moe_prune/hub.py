"""Models by the names they have on the Hugging Face hub: ``Org/Name`` or ``Org/Name@revision``.

Everything goes through ``huggingface_hub``: its cache, its offline mode, its token, its progress
bars. It is imported when something is asked of it, for it is no dependency of this package; every
host with transformers or vLLM has it.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_moe_prune.errors import PruneError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_SECONDS = 10.0  # to wait for the hub's first answer, as its client does for files
_SIGN_IN = "set HF_TOKEN or run `hf auth login`"


@dataclass(frozen=True, slots=True)
class HubReference:
    """A model repository on the hub.

    :ivar repo_id: ``Org/Name``
    :ivar revision: a branch, a tag or a commit; None is the default branch
    """

    repo_id: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.revision}" if self.revision else self.repo_id


def parse(text: str) -> HubReference | None:
    """Return the repository that a text names; None where it is a path.

    What exists here is a path, whatever it is called; ``Org/Name@main`` always means the hub. A
    text that is not of the form ``Org/Name`` can only be a path.
    """
    name, separator, revision = text.partition("@")
    if not _is_id(name) or (separator and not revision) or Path(text).exists():
        return None
    return HubReference(name, revision or None)


def _is_id(name: str) -> bool:
    """Return whether the hub allows a repository of that name."""
    if not _ID.fullmatch(name) or "--" in name or ".." in name:
        return False
    return not any(part.endswith((".", "-", ".git")) for part in name.split("/"))


def fetch(reference: HubReference, patterns: Sequence[str]) -> Path:
    """Bring files of a repository into the hub's cache and return the folder of the snapshot.

    What the cache has is not downloaded again. Where the hub cannot be reached, or with
    ``HF_HUB_OFFLINE``, the snapshot that the cache has is taken.

    :param patterns: such as ``*.json``; a file is wanted if one of them matches its path
    :raises PruneError: if there is no such model or revision, it is not to be read with this token,
        it has no such files, the disk has no space for them, or the hub cannot be reached
    """
    from_hub = _client().snapshot_download
    with _explained(reference):
        try:
            info = _info(reference)
        except _Unreachable as error:
            return _from_cache(reference, patterns, error)
        _check_space(reference, info, patterns)
        folder = from_hub(
            reference.repo_id, revision=reference.revision, allow_patterns=list(patterns)
        )
    return Path(folder)


def commit(reference: HubReference) -> str:
    """Return the commit that a reference names now; what the cache has where there is no hub.

    It costs one request, so it is a cheap check that a model exists.

    :raises PruneError: if there is no such model or revision, or the hub cannot be reached
    """
    with _explained(reference):
        try:
            return str(_info(reference).sha)
        except _Unreachable as error:
            return _from_cache(reference, ["config.json"], error).name


class _Unreachable(Exception):
    """The hub was not asked, or did not answer."""


def _info(reference: HubReference) -> ModelInfo:
    """Ask the hub about a revision: its commit and its files with their sizes."""
    hub = _client()
    try:
        info: ModelInfo = hub.HfApi().model_info(
            reference.repo_id, revision=reference.revision, timeout=_SECONDS, files_metadata=True
        )
        return info
    except hub.errors.OfflineModeIsEnabled as error:
        raise _Unreachable("HF_HUB_OFFLINE is set") from error
    except hub.errors.HfHubHTTPError as error:
        if error.response.status_code < 500:
            raise
        raise _Unreachable(f"{_address()} answers {error.response.status_code}") from error
    except hub.errors.HfHubHTTPError.__bases__ as error:  # of httpx or httpx2, by its version
        raise _Unreachable(f"{_address()} cannot be reached ({error})") from error


def _from_cache(reference: HubReference, patterns: Sequence[str], reason: Exception) -> Path:
    hub = _client()
    try:
        folder = hub.snapshot_download(
            reference.repo_id,
            revision=reference.revision,
            allow_patterns=list(patterns),
            local_files_only=True,
        )
    except hub.errors.LocalEntryNotFoundError as error:
        part = " whole" if "incomplete" in str(error) else ""
        raise PruneError(
            f"{reason}, and {reference} is not{part} in the cache {hub.constants.HF_HUB_CACHE}",
            hint="download it while the hub can be reached, or give the path of a local folder",
        ) from error
    return Path(folder)


def _check_space(reference: HubReference, info: ModelInfo, patterns: Sequence[str]) -> None:
    """Refuse a download that the disk has no space for, before it begins."""
    hub = _client()
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    wanted = list(hub.utils.filter_repo_objects(sizes, allow_patterns=list(patterns)))
    if not wanted:
        raise PruneError(
            f"the hub's {reference} has no file that is called {' or '.join(patterns)}",
            hint="it has " + (", ".join(sorted(sizes)[:8]) or "no files"),
        )
    missing = sum(
        sizes[name]
        for name in wanted
        if not hub.try_to_load_from_cache(reference.repo_id, name, revision=info.sha)
    )
    cache = Path(hub.constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(p for p in (cache, *cache.parents) if p.exists())).free
    if missing > free:
        raise PruneError(
            f"{reference} needs {missing / 1e9:.1f} GB in {cache}, where {free / 1e9:.1f} GB are "
            "free",
            hint="set HF_HOME to a folder on a larger disk, or free some: `hf cache prune`",
        )


@contextmanager
def _explained(reference: HubReference) -> Iterator[None]:
    """Turn the errors of the hub's client into one line each."""
    hub = _client()
    try:
        yield
    except hub.errors.GatedRepoError as error:
        raise PruneError(
            f"{reference.repo_id} is gated on the hub, and this token may not read it",
            hint=f"accept its terms at {_address()}/{reference.repo_id}, then {_SIGN_IN}",
        ) from error
    except hub.errors.RepositoryNotFoundError as error:
        raise PruneError(
            f"there is no folder {reference} here and no model of that name on {_address()}",
            hint=f"check the name; for a private model {_SIGN_IN}",
        ) from error
    except hub.errors.RevisionNotFoundError as error:
        raise PruneError(
            f"the hub's {reference.repo_id} has no revision {reference.revision!r}",
            hint="give a branch, a tag or a commit: "
            f"{_address()}/{reference.repo_id}/tree/main lists them",
        ) from error
    except hub.errors.HfHubHTTPError as error:
        text = error.server_message or f"status {error.response.status_code}"
        raise PruneError(
            f"{_address()} refuses {reference}: {text.splitlines()[0]}",
            hint=_SIGN_IN if error.response.status_code in (401, 403) else "try again later",
        ) from error
    except hub.errors.HfHubHTTPError.__bases__ as error:
        raise _broken(reference, error) from error


def _broken(reference: HubReference, error: Any) -> PruneError:
    """Say why a download stopped."""
    cache = _client().constants.HF_HUB_CACHE
    if getattr(error, "errno", None) == errno.ENOSPC:
        return PruneError(
            f"no space left in {cache} for {reference}",
            hint="set HF_HOME to a folder on a larger disk, or free some: `hf cache prune`",
        )
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return PruneError(
        f"the download of {reference} stopped: {first}",
        hint=f"start again: files that are whole in {cache} are kept",
    )


def _address() -> str:
    return str(_client().constants.ENDPOINT)


def _client() -> Any:
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
