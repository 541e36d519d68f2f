"""Files of records: JSON lines, which a kill leaves whole but for the last, or Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from loadtest.metrics import Record
from vllm_moe_prune.errors import PruneError, one_line
from vllm_moe_prune.reading import read_text

MOST_RECORDS = 1 << 36  # bytes of a file of records
PARQUET = ".parquet"
_ROWS = 4096  # that are held at once


def need_parquet() -> None:
    """Refuse where Parquet cannot be written.

    :raises PruneError: if pyarrow is not installed
    """
    if find_spec("pyarrow") is None:
        raise PruneError("records as Parquet need pyarrow", hint="pip install pyarrow, or .jsonl")


def read_records(path: Path) -> list[Record]:
    """Read what the locustfile writes with ``--records``; Parquet by the name's end.

    :raises PruneError: one line, if the file is missing or something in it is no record
    """
    if path.suffix == PARQUET:
        return _read_parquet(path)
    return list(_read_lines(path))


def _read_lines(path: Path) -> Iterator[Record]:
    try:
        text = read_text(path, most=MOST_RECORDS)
    except PruneError as error:
        raise PruneError(f"no request records at {path}", hint="was it run?") from error
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), 1):
        try:
            yield Record.model_validate_json(line)
        except ValidationError as error:
            raise PruneError(f"{path} line {number} is no record: {one_line(error)}") from error


def _read_parquet(path: Path) -> list[Record]:
    need_parquet()
    from pyarrow import ArrowException, parquet

    if not path.is_file():
        raise PruneError(f"no request records at {path}", hint="was it run?")
    records: list[Record] = []
    try:
        for batch in parquet.ParquetFile(path).iter_batches(_ROWS):
            records += [Record.model_validate(row) for row in batch.to_pylist()]
    except ValidationError as error:
        raise PruneError(f"{path} holds what is no record: {one_line(error)}") from error
    except (ArrowException, OSError, ValueError) as error:
        raise PruneError(f"{path} is not Parquet: {str(error).splitlines()[0]}") from error
    return records


def to_parquet(lines: Path, path: Path) -> None:
    """Write the records of a file of lines as Parquet, in little memory, and remove that file.

    A row for each request, a column for each field of `Record`; times of chunks are lists.
    """
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema([(name, _type(name)) for name in Record.model_fields])
    with lines.open(encoding="utf-8") as stream, parquet.ParquetWriter(path, schema) as writer:
        for rows in _batches(Record.model_validate_json(line) for line in stream):
            found = [row.model_dump() for row in rows]
            writer.write_table(pyarrow.Table.from_pylist(found, schema=schema))
    lines.unlink()


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    rest = iter(records)
    while batch := list(islice(rest, _ROWS)):
        yield batch


def _type(name: str) -> Any:
    import pyarrow

    simple = {
        **{str: pyarrow.string(), bool: pyarrow.bool_()},
        **{int: pyarrow.int64(), float: pyarrow.float64()},
    }
    hint: Any = Record.model_fields[name].annotation
    parts = [part for part in get_args(hint) or (hint,) if part not in (type(None), Ellipsis)]
    inner = simple[parts[0]]
    return pyarrow.list_(inner) if getattr(hint, "__origin__", None) is tuple else inner
