"""Files that are not what their names say, and columns that are not there."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from offline.calibration.corpus import load_domains, parse_calibration
from tests.texts.samples import as_parquet
from vllm_moe_prune.errors import PruneError

CUT = gzip.compress(b'{"text": "x"}\n' * 999, mtime=0)[:40]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"txt": 1}', "line 2 has no text: its columns are txt"),
        ("a.jsonl", b'{"text": 3}', "line 1: `text` is no text, but a number"),
        ("a.jsonl", b'{"text": "\xff"}', r"line 1 is no text in UTF-8 \(its byte 10\)"),
        ("a.jsonl", b"[" * 99_999, "line 1 is nested too deeply"),
        ("a.jsonl", b"1" * 9999, "line 1 is not JSON: a number of 9999 digits"),
        ("a.json", b'[{"text": "x"}, {"text": ]', "row 2 is not JSON"),
        ("a.json", b"[" * 99_999, "row 1 is not JSON: nested too deeply"),
        ("a.json", b'[{"text": "x"}, 3]', "row 2 is no object with text, but a number"),
        ("a.csv", b"body\nx\n", "has no text: its columns are body"),
        ("a.csv", b"text\nx,y\n", "row 1 has 2 values for 1 columns"),
        ("a.csv", b'text\n"x', "row 1 is no CSV: unexpected end of data"),
        ("a.csv", b"text\nx\n\xff", r"line 3 is no text in UTF-8"),
        ("a.parquet", b"PAR1", "is no Parquet file"),
        ("a.txt", b"the \xff", r"is no text in UTF-8 \(byte 4\)"),
        ("a.txt.gz", b"the cat", "cannot read .*a.txt.gz: Not a gzipped file"),
        ("a.txt.zst", b"the cat", "cannot read .*a.txt.zst: ZSTD decompress failed"),
        ("a.jsonl.gz", CUT, "cannot read .*Compressed"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
def test_what_is_broken_is_named_with_its_row(
    name: str, content: bytes, said: str, tmp_path: Path, tokenizer: Any
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(PruneError, match=said) as error:
        load_domains(parse_calibration(f"{file}:9"), tokenizer, length=9)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "column"),
    [
        ("a.csv", b"body,text\nx,y\n", "no"),
        ("a.jsonl", b'{"body": "x", "text": "y"}\n', "no"),
        ("a.json", b'[{"body": "x", "text": "y"}]', "no"),
        ("a.parquet", as_parquet([{"body": "x", "text": "y"}]), "no"),
        ("a.parquet", as_parquet([{"body": "x"}]), None),
    ],
)
def test_a_column_that_is_not_there_is_said_when_the_source_is_named(
    name: str, content: bytes, column: str | None, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    spec = f"{file}#{column}" if column else str(file)
    with pytest.raises(PruneError, match=r"its columns are body") as error:
        parse_calibration(f"{spec}:4")
    assert "SOURCE#COLUMN" in str(error.value)
