"""Rows of a data set of the Hugging Face hub, streamed through ``datasets``."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from offline.texts.parquet_rows import without_nulls
from offline.texts.row import Row, told
from vllm_moe_prune.errors import PruneError

_NAME = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/:#]+))?(?:/(?P<config>[^:#@]+))?"
    r"(?::(?P<split>[A-Za-z_][\w.-]*))?"
)
_GRAMMAR = "hf:Org/Name[@revision][/config][:split][#column]"
_SECONDS = 10.0  # to wait for the hub's first answer


@dataclass(frozen=True, slots=True)
class HubName:
    """A data set as it is named; ``config`` may be the path of one of its files."""

    repo: str
    revision: str | None
    config: str | None
    split: str | None

    @property
    def is_file(self) -> bool:
        """Whether a file of the repository is meant, not a config."""
        return self.config is not None and "." in self.config.rpartition("/")[2]

    @property
    def short(self) -> str:
        """What to call its text."""
        name = self.repo.partition("/")[2]
        if self.config is None:
            return name
        last = self.config.rpartition("/")[2].partition(".")[0]
        return f"{name}-{last}"


def parse_name(text: str) -> HubName:
    """Read ``Org/Name[@revision][/config][:split]``.

    :raises PruneError: if it is none
    """
    found = _NAME.fullmatch(text)
    if found is None:
        raise PruneError(f"cannot read hf:{text}", hint=_GRAMMAR)
    return HubName(found["repo"], found["revision"], found["config"], found["split"])


@dataclass(frozen=True, slots=True)
class HubRows:
    """The rows of one split at one commit."""

    name: str
    split: str
    revision: str
    columns: frozenset[str]
    _data: Any = field(repr=False, compare=False)

    @classmethod
    def of(cls, text: str) -> HubRows:
        """Find a data set and what of it is meant; downloads no rows.

        :raises PruneError: if there is none, it may not be read, or it has no such config or split
        """
        return _found(text)

    def rows(self, key: str | None = None) -> Iterator[Row]:
        """Yield the rows; files come in an order that the key gives, or as they lie there.

        :raises PruneError: if the hub stops to answer, or a file cannot be read
        """
        data = self._data
        if key is not None and data.num_shards > 1:
            with _without_torch():
                data = data.shuffle(seed=random.Random(key).getrandbits(32), buffer_size=1)
        entries = iter(data)
        count = 0
        while True:
            count += 1
            with _explained(self.name, f"hf:{self.name} row {count}"):
                entry = next(entries, None)
            if entry is None:
                return
            yield Row(f"hf:{self.name} row {count}", f"row-{count}", without_nulls(entry))


@lru_cache(maxsize=64)
def _found(text: str) -> HubRows:
    name = parse_name(text)
    commit = _commit(text, name)
    import datasets

    given: dict[str, Any] = {"revision": commit, "streaming": True}
    if name.is_file:
        given["data_files"] = name.config
    elif name.config is not None:
        given["name"] = name.config
    place = f"hf:{text}"
    with _explained(text, place), _without_torch():
        found = datasets.load_dataset(name.repo, **given)
    split = _split(text, name, list(found))
    data = found[split]
    with _explained(text, place):  # files without a schema show their columns in the first row
        columns = frozenset(data.column_names or next(iter(data), {}))
    return HubRows(text, split, commit, columns, data)


def _split(text: str, name: HubName, known: list[str]) -> str:
    if name.split in known:
        return str(name.split)
    if name.split is None:
        if len(known) == 1:
            return known[0]
        if "train" in known:
            return "train"
    wrong = "several splits" if name.split is None else f"no split {name.split}"
    raise PruneError(f"hf:{text}: the data set has {wrong}", hint=f"it has {', '.join(known)}")


def _commit(text: str, name: HubName) -> str:
    """Return the commit that is meant, which is a cheap way to know that there is one."""
    from huggingface_hub import HfApi

    with _explained(text, f"hf:{text}"):
        found = HfApi().dataset_info(name.repo, revision=name.revision, timeout=_SECONDS)
    return str(found.sha)


@contextmanager
def _without_torch() -> Iterator[None]:
    """Let ``datasets`` make a stream that is no data set of torch as well, whose import takes far
    longer than all else that is done before a wrong source can be said."""
    from datasets import config

    before, config.TORCH_AVAILABLE = config.TORCH_AVAILABLE, False
    try:
        yield
    finally:
        config.TORCH_AVAILABLE = before


@contextmanager
def _explained(text: str, place: str) -> Iterator[None]:
    """Say in one line what the hub or ``datasets`` refuses."""
    try:
        yield
    except PruneError:
        raise
    except Exception as error:  # readers of all formats and two HTTP clients raise their own
        raise _refusal(parse_name(text), place, error) from error


def _refusal(name: HubName, place: str, error: Exception) -> PruneError:
    from huggingface_hub import errors

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    said = told(error)

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in chain)

    if has(errors.OfflineModeIsEnabled):
        return PruneError(
            f"{place}: HF_HUB_OFFLINE is set, and rows are streamed from the hub",
            hint="download the data set (hf download --repo-type dataset) and give the folder",
        )
    if has(errors.GatedRepoError) or "is a gated dataset" in str(error):
        return PruneError(
            f"{place}: the data set {name.repo} is gated, and this token may not read it",
            hint=f"ask for access on its page, then set HF_TOKEN: {name.repo}",
        )
    if has(errors.RevisionNotFoundError):
        return PruneError(f"{place}: the data set {name.repo} has no revision {name.revision}")
    if has(errors.RepositoryNotFoundError):
        return PruneError(
            f"{place}: there is no data set {name.repo} on the hub",
            hint="check the name; for a private one set HF_TOKEN",
        )
    kinds = {kind.__name__ for one in chain for kind in type(one).__mro__}
    if "TransportError" in kinds:  # of httpx or httpx2, by the client's version
        return PruneError(
            f"{place}: the hub cannot be reached: {said}",
            hint="check the network and HF_ENDPOINT, or give the folder of a downloaded data set",
        )
    if "Config name is missing" in str(error) or "BuilderConfig" in str(error):
        return PruneError(f"{place}: {_configs(str(error))}", hint=_GRAMMAR)
    if name.is_file and has(FileNotFoundError):
        return PruneError(f"{place}: the data set {name.repo} has no file {name.config}")
    return PruneError(f"{place} cannot be read: {said}")


def _configs(said: str) -> str:
    """Return what ``datasets`` says of the configs that there are, as one clause."""
    listed = re.search(r"\[(.*?)\]", said)
    known = "" if listed is None else f": {listed[1]}".replace("'", "")
    if "Config name is missing" in said:
        return f"the data set has several configs, name one{known}"
    return f"the data set has no such config; it has{known}"
