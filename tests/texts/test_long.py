"""Long documents: read in pieces, tokenised as the whole, and in little memory."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offline.calibration.corpus import load_domains, parse_calibration
from offline.texts import encode, order
from offline.texts.encode import plain_ids
from offline.texts.files import Files
from offline.texts.row import LONGEST, LongText
from tests.texts.samples import byte_tokenizer, metaspace_tokenizer
from tests.tiny import make_tiny_mixtral, word_tokenizer
from vllm_moe_prune.errors import PruneError

TOKENIZERS = {
    "bytes": byte_tokenizer,
    "metaspace": metaspace_tokenizer,
    "words": lambda: word_tokenizer(128),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def any_tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]()


def joined(text: Any, tokenizer: Any) -> list[int]:
    return [token for piece in plain_ids(text, tokenizer) for token in piece]


WORDS = ("the", "old", "house", "sea", "é", "日本", "red,", "door.", "a", "</s>", "x" * 30, "12345")
SPACES = (" ", " ", " ", "  ", "\n", "\n\n", "\t", " " * 9)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 2500))
def test_pieces_give_the_tokens_of_the_whole(
    any_tokenizer: Any, seed: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "WHOLE", 4000)
    monkeypatch.setattr(encode, "PIECE", 3000)
    monkeypatch.setattr(encode, "_OVERLAP", 600)
    rng = random.Random(seed)
    text = "".join(rng.choice(WORDS) + rng.choice(SPACES) for _ in range(count))
    assert joined(text, any_tokenizer) == any_tokenizer.encode(
        text, add_special_tokens=False, split_special_tokens=True
    )


def test_no_more_is_read_than_is_asked_for(tmp_path: Path, any_tokenizer: Any) -> None:
    text = "the old house by the sea has a red door . " * 100_000
    (tmp_path / "long.txt").write_text(text)
    read = [0]

    def opened() -> Any:
        stream = (tmp_path / "long.txt").open("rb")
        given = stream.read

        class Counting:
            close = stream.close

            def read(self, size: int) -> bytes:
                block = given(size)
                read[0] += len(block)
                return block

        return Counting()

    pieces = plain_ids(LongText("long.txt", opened), any_tokenizer)
    first = next(pieces)
    pieces.close()
    assert len(first) > 10_000
    assert read[0] <= 2 * encode.WHOLE < len(text) // 2
    whole = any_tokenizer.encode(text[: 2 * encode.PIECE], add_special_tokens=False)
    assert first == whole[: len(first)]


def test_a_word_without_an_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "WHOLE", 4000)
    monkeypatch.setattr(encode, "PIECE", 2000)
    monkeypatch.setattr(encode, "_OVERLAP", 200)
    tokenizer = byte_tokenizer()
    text = "".join(random.Random(0).choices("abc", k=9000))
    assert tokenizer.decode(joined(text, tokenizer)) == text


def test_a_tokenizer_without_places_takes_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Mistral's own do, which refuse some arguments as well."""
    monkeypatch.setattr(encode, "WHOLE", 4000)
    monkeypatch.setattr(encode, "PIECE", 2000)
    tokenizer = byte_tokenizer()

    class Slow:
        is_fast = False

        def encode(self, text: str, *, split_special_tokens: bool = False, **given: Any) -> Any:
            if split_special_tokens:
                raise ValueError("not supported")
            return tokenizer.encode(text, **given)

    text = "the old house by the sea " * 500
    found = list(plain_ids(text, Slow()))
    assert len(found) == 7 and tokenizer.decode([t for piece in found for t in piece]) == text


# Read in a process of its own, whose memory is then known: 200 MB as one document.
_CHILD = """
import resource, sys
from offline.calibration.corpus import load_domains, parse_calibration
from transformers import AutoTokenizer
from vllm_moe_prune.errors import PruneError
file, model, length = sys.argv[1], sys.argv[2], int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(model)
tokenizer.encode("the cat " * 1000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    (domain,) = load_domains(parse_calibration(f"{file}:64"), tokenizer, length=length)
    said = domain.use.told
except PruneError as error:
    said = error.message
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(grown // 1024, said)
"""
_KINDS = ("txt", "txt.gz", "txt.zst", "jsonl", "json", "csv", "parquet")


def write_document(folder: Path, kind: str, size: int) -> Path:
    """Write one document of some size without having it in memory."""
    file, block = folder / f"one.{kind}", b"the old house by the sea . " * 4000
    if kind == "parquet":
        import pyarrow.parquet as pq

        text = pa.array([block.decode() * (size // len(block))])
        pq.write_table(pa.table({"text": text}), file)
        return file
    begin = {"jsonl": b'{"text": "', "json": b'[{"text": "', "csv": b"text\n"}.get(kind, b"")
    end = {"jsonl": b'"}\n', "json": b'"}]'}.get(kind, b"")
    opened: Any = file.open("wb")
    if kind.endswith(".gz"):
        opened = gzip.open(file, "wb", compresslevel=1)  # noqa: SIM115 - closed below
    elif kind.endswith(".zst"):
        opened = pa.output_stream(str(file), compression="zstd")
    with opened as out:
        out.write(begin)
        for _ in range(size // len(block)):
            out.write(block)
        out.write(end)
    return file


@pytest.mark.slow
@pytest.mark.parametrize("kind", _KINDS)
def test_a_document_of_200_mb_takes_less_than_300(kind: str, tmp_path: Path) -> None:
    model = make_tiny_mixtral(tmp_path / "model")
    file = write_document(tmp_path, kind, 200_000_000)
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(file), str(model), "512"],
        capture_output=True,
        text=True,
        check=True,
    )
    grown, _, said = done.stdout.strip().partition(" ")
    if kind.startswith("txt"):
        assert said == "1 rows, 32,768 tokens"
    else:
        assert "longer than 16 MiB" in said and "one." in said
    assert int(grown) < 300, f"{grown} MB more: {said}"


def test_a_row_that_is_too_long_is_counted_and_the_others_are_used(tmp_path: Path) -> None:
    long = "the cat " * (LONGEST // 8 + 20_000)
    file = tmp_path / "rows.jsonl"
    rows = [{"text": "the cat sees a dog"}, {"text": long}, {"text": "a dog sees the cat"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (domain,) = load_domains(parse_calibration(f"{file}:2"), word_tokenizer(128), length=5)
    assert domain.use is not None
    assert domain.use.used == 2
    assert set(domain.use.skipped) <= {"longer than 16 MiB"}
    (tmp_path / "rows.json").write_text(json.dumps([{"text": "the cat"}, {"text": long}]))
    with pytest.raises(PruneError, match=r"rows\.json row 2 is longer than 16 MiB"):
        list(Files.of(tmp_path / "rows.json").rows())


def test_memory_of_an_order_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"{n} " * (n % 50 + 1)} for n in range(500)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [row["text"] for row in rows]
    random.Random("key").shuffle(texts)
    for budget in (1, 500, 20_000, 10**9):
        monkeypatch.setattr(order, "_FIRST", budget)
        found = [row.content["text"] for row in order.shuffled(Files.of(file), "key")]
        assert found == texts
