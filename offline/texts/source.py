"""`Source`: where rows come from, by the name that it is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from offline.texts.files import Files
from offline.texts.forms import FORMS, check_columns, form_of
from offline.texts.hub_rows import HubRows
from offline.texts.order import mixed, shuffled
from offline.texts.row import Row, Skip
from offline.texts.tally import Tally
from vllm_moe_prune.errors import PruneError


class Source(Protocol):
    """Rows that were found; nothing of them has to be in memory."""

    @property
    def column(self) -> str | None:
        """The column that is read, if one was named."""

    @property
    def split(self) -> str:
        """Which part of the data they are, for what names it in artefacts."""

    @property
    def revision(self) -> str | None:
        """The commit of a data set of the hub."""

    def rows(self) -> Iterator[Row]:
        """Yield all rows as they lie there.

        :raises PruneError: naming what cannot be read
        """

    def ordered(self, key: str) -> Iterator[Row]:
        """Yield all rows in the order that a key gives; raises as `rows`."""


@dataclass(frozen=True, slots=True)
class Listed:
    """Rows that are in memory."""

    listed: Sequence[Row]
    split: str = ""
    column: str | None = None
    revision: str | None = None

    @classmethod
    def of(cls, texts: Sequence[str], place: str, split: str) -> Listed:
        """Take texts as rows."""
        rows = [Row(f"{place} {n}", f"row-{n}", text) for n, text in enumerate(texts, start=1)]
        return cls(rows, split)

    def rows(self) -> Iterator[Row]:
        """Yield all rows."""
        return iter(self.listed)

    def count(self) -> int:
        """Return how many there are."""
        return len(self.listed)

    def picked(self, wanted: Any) -> Iterator[tuple[int, Row]]:
        """Yield the rows of some numbers with these."""
        return ((n, row) for n, row in enumerate(self.listed) if n in wanted)

    def ordered(self, key: str) -> Iterator[Row]:
        """Yield all rows in the order that a key gives."""
        return shuffled(self, key)


@dataclass(frozen=True, slots=True)
class FileSource:
    """Rows of a file or of a folder's files."""

    files: Files
    column: str | None = None
    split: str = ""
    revision: str | None = None

    def rows(self) -> Iterator[Row]:
        """Yield all rows, one file after the other."""
        return self.files.rows()

    def ordered(self, key: str) -> Iterator[Row]:
        """Yield the rows of all files in the order that a key gives."""
        return shuffled(self.files, key)


@dataclass(frozen=True, slots=True)
class HubSource:
    """Rows of a data set of the hub, streamed."""

    data: HubRows
    column: str | None = None

    @property
    def split(self) -> str:
        """The split, and the commit that it is of."""
        return f"{self.data.split}@{self.data.revision}"

    @property
    def revision(self) -> str | None:
        """The commit."""
        return self.data.revision

    def rows(self) -> Iterator[Row]:
        """Yield all rows."""
        return self.data.rows()

    def ordered(self, key: str) -> Iterator[Row]:
        """Yield the rows of the files in an order that a key gives, mixed in blocks."""
        return mixed(self.data.rows(key), key)


def open_source(source: str) -> Source:
    """Find what a source names: a domain of the demo, a file, a folder, or a data set of the hub.

    Its beginning is looked at, so that a column that is not there is said early, as is a file with
    nothing in it.

    :param source: without name and number of sequences
    :raises PruneError: if there is none, or its first rows are none that can be read
    """
    from offline.data.domains import DOMAINS, load_corpora

    if source in DOMAINS:
        return Listed.of(load_corpora(names=[source])[source].train, source, "train")
    return check_source(source)


def check_source(source: str) -> FileSource | HubSource:
    """Return a source that is no domain of the demo, after a look at its beginning.

    :raises PruneError: as `open_source`
    """
    from offline.texts.spec import HUB, split_column

    name, column = split_column(source)
    if name.startswith(HUB):
        data = HubRows.of(name.removeprefix(HUB))
        check_columns(data.columns, source, column)
        return HubSource(data, column)
    found = FileSource(Files.of(Path(name)), column)
    columns = found.files.columns()
    if columns is not None:
        check_columns(columns, str(found.files.paths[0]), column)
    _look(found)
    return found


def _look(source: FileSource) -> None:
    """Refuse a source of which no row says anything, or the first that does has no form."""
    tally, name = Tally(), str(source.files.paths[0])
    for row in source.rows():
        tally.rows += 1
        try:
            form_of(row, source.column)
        except Skip as skip:
            tally.skip(row, skip)
            continue
        return
    raise PruneError(f"{name} holds no text{tally.why()}", hint=FORMS)
