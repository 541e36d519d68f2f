"""Models by the names they have on the Hugging Face hub: ``Org/Name`` or ``Org/Name@revision``.

Everything goes through ``huggingface_hub``: its cache, its offline mode, its token, its progress
bars.
"""

from __future__ import annotations

import glob
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub_client import SECONDS, address, client, explained, no_space

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_LONGEST = 96
_COMMIT = re.compile(r"[0-9a-f]{40}")


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
    reference = spelled(text)
    return None if reference is None or Path(text).exists() else reference


def spelled(text: str) -> HubReference | None:
    """Return the repository that a text could name, whether or not a path is called the same."""
    name, separator, revision = text.partition("@")
    if not _is_id(name) or (separator and not revision):
        return None
    return HubReference(name, revision or None)


def _is_id(name: str) -> bool:
    """Return whether the hub allows a repository of that name."""
    if not _ID.fullmatch(name) or len(name) > _LONGEST or "--" in name or ".." in name:
        return False
    return not any(part.endswith((".", "-", ".git")) for part in name.split("/"))


def snapshot_of(folder: Path) -> HubReference | None:
    """Return what a folder of the hub's cache is a snapshot of, its commit as the revision.

    None where the folder is no snapshot of a model.
    """
    parts = folder.absolute().parts
    if len(parts) < 3 or parts[-2] != "snapshots" or not _COMMIT.fullmatch(parts[-1]):
        return None
    kind, *names = parts[-3].split("--")
    return HubReference("/".join(names), parts[-1]) if kind == "models" and names else None


def origin(folder: Path) -> dict[str, str]:
    """Return which repository and commit a snapshot is, for provenance; nothing elsewhere."""
    found = snapshot_of(folder)
    if found is None or found.revision is None:
        return {}
    return {"base_model": found.repo_id, "base_commit": found.revision}


def fetch(
    reference: HubReference,
    patterns: Sequence[str],
    *,
    bars: bool = True,
    cache: Path | None = None,
) -> Path:
    """Bring files of a repository into the hub's cache and return the folder of the snapshot.

    What the cache has is not downloaded again. Where the hub cannot be reached, or with
    ``HF_HUB_OFFLINE``, the snapshot that the cache has is taken.

    :param patterns: such as ``*.json``; a file is wanted if one of them matches its path. In a
        pattern that begins with a slash no star goes across folders: ``/*.json`` is the top alone
    :param bars: whether the hub's client may show its progress
    :param cache: the folder of the cache; the hub client's own if not given
    :raises PruneError: if there is no such model or revision, it is not to be read with this token,
        it has no such files, the disk has no space for them, or the hub cannot be reached
    """
    cache = cache or _cache()
    with explained(reference.repo_id, reference.revision), _bars(bars):
        try:
            info = _info(reference)
        except _Unreachable as error:
            return _from_cache(reference, patterns, cache, error)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        wanted = _wanted(sizes, patterns)
        if not wanted:
            raise PruneError(
                f"the hub's {reference} has no file that is called {' or '.join(patterns)}",
                hint="it has " + (", ".join(sorted(sizes)[:8]) or "no files"),
            )
        _check_space(reference, str(info.sha), {name: sizes[name] for name in wanted}, cache)
        folder = client().snapshot_download(
            reference.repo_id,
            revision=reference.revision,
            allow_patterns=[glob.escape(name) for name in wanted],
            cache_dir=cache,
        )
    return Path(folder)


def _wanted(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if any(_matches(name, pattern) for pattern in patterns)]


def _matches(name: str, pattern: str) -> bool:
    if not pattern.startswith("/"):
        return fnmatchcase(name, pattern)
    parts, wanted = name.split("/"), pattern[1:].split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Keep the hub's client from showing its progress for the length of a block."""
    utils = client().utils
    if shown or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def commit(reference: HubReference) -> str:
    """Return the commit that a reference names now; what the cache has where there is no hub.

    It costs one request, so it is a cheap check that a model exists.

    :raises PruneError: if there is no such model or revision, or the hub cannot be reached
    """
    with explained(reference.repo_id, reference.revision):
        try:
            return str(_info(reference).sha)
        except _Unreachable as error:
            return _from_cache(reference, (), _cache(), error).name


class _Unreachable(Exception):
    """The hub was not asked, or did not answer."""


def _info(reference: HubReference) -> ModelInfo:
    """Ask the hub about a revision: its commit and its files with their sizes."""
    hub = client()
    try:
        info: ModelInfo = hub.HfApi().model_info(
            reference.repo_id, revision=reference.revision, timeout=SECONDS, files_metadata=True
        )
        if not _COMMIT.fullmatch(str(info.sha)):  # it becomes a folder's name, and is shown
            raise ValueError(f"its commit is {info.sha!r}")
        return info
    except hub.errors.OfflineModeIsEnabled as error:
        raise _Unreachable("HF_HUB_OFFLINE is set") from error
    except hub.errors.HfHubHTTPError as error:
        if error.response.status_code < 500:
            raise
        raise _Unreachable(f"{address()} answers {error.response.status_code}") from error
    except hub.errors.HfHubHTTPError.__bases__ as error:  # of httpx or httpx2, by its version
        raise _Unreachable(f"{address()} cannot be reached ({error})") from error


def _cache() -> Path:
    return Path(client().constants.HF_HUB_CACHE)


def _from_cache(
    reference: HubReference, patterns: Sequence[str], cache: Path, reason: Exception
) -> Path:
    """Return the snapshot that the cache has, if all that is wanted of it is there."""
    hub, name = client(), reference.repo_id
    hint = "download it while the hub can be reached, or give the path of a local folder"
    try:
        folder = Path(
            hub.snapshot_download(
                name,
                revision=reference.revision,
                allow_patterns=[],
                local_files_only=True,
                cache_dir=cache,
            )
        )
    except hub.errors.LocalEntryNotFoundError as error:
        text = f"{reason}, and {reference} is neither a folder here nor in the cache {cache}"
        raise PruneError(text, hint) from error
    try:  # a client that keeps no lists of files cannot say what is missing
        tree = hub.get_cached_repo_tree(name, revision=folder.name, cache_dir=cache)
        listed = [file.path for file in tree]
    except (AttributeError, hub.errors.CachedRepoTreeNotFoundError):
        listed = []
    missing = [file for file in _wanted(listed, patterns) if not (folder / file).exists()]
    if missing:
        raise PruneError(
            f"{reason}, and {reference} has no {missing[0]} in the cache {cache}", hint
        )
    return folder


def _check_space(
    reference: HubReference, revision: str, sizes: Mapping[str, int], cache: Path
) -> None:
    """Refuse a download that the disk has no space for, before it begins.

    :param sizes: file -> bytes
    """
    hub = client()
    missing = sum(
        size
        for name, size in sizes.items()
        if not hub.try_to_load_from_cache(reference.repo_id, name, cache, revision)
    )
    free = shutil.disk_usage(next(p for p in (cache, *cache.parents) if p.exists())).free
    if missing > free:
        raise no_space(f"{missing / 1e9:.3g} GB for {reference}, {free / 1e9:.3g} GB are free")
