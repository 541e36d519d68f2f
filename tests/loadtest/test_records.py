"""Records as Parquet are the same records, and a file that holds none is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from loadtest.metrics import Record
from loadtest.records import read_records, to_parquet
from vllm_moe_prune.errors import PruneError

times = st.floats(0, 1e6)
RECORDS = st.builds(
    Record,
    kind=st.sampled_from(["chat", "completion"]),
    started=times,
    arrivals=st.lists(times, max_size=4).map(tuple),
    ended=times,
    prompt_tokens=st.none() | st.integers(0, 10**9),
    output_tokens=st.none() | st.integers(0, 10**9),
    error=st.none() | st.text(),
    cut=st.booleans(),
    counts=st.lists(st.integers(0, 10**9), max_size=4).map(tuple),
    answer=st.none() | times,
    status=st.none() | st.integers(100, 599),
)


@settings(deadline=None, max_examples=40)  # pyarrow is imported in the first
@given(st.lists(RECORDS, max_size=6))
def test_parquet_holds_every_record_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record]
) -> None:
    folder = tmp_path_factory.mktemp("records")
    lines = folder / "r.jsonl"
    lines.write_text("".join(r.model_dump_json(exclude_defaults=True) + "\n" for r in records))
    assert read_records(lines) == records
    to_parquet(lines, folder / "r.parquet")
    assert read_records(folder / "r.parquet") == records
    assert not lines.exists()
    names = parquet.read_schema(folder / "r.parquet").names
    assert names == list(Record.model_fields)


def test_what_holds_no_records_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "r.parquet"
    with pytest.raises(PruneError, match="no request records at"):
        read_records(file)
    file.write_text("not that")
    with pytest.raises(PruneError, match=r"r\.parquet is not Parquet") as caught:
        read_records(file)
    assert "\n" not in str(caught.value)
    parquet.write_table(pyarrow.table({"a": [1]}), file)
    with pytest.raises(PruneError, match=r"r\.parquet holds what is no record: ") as caught:
        read_records(file)
    assert "\n" not in str(caught.value)
