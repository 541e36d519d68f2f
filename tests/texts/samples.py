"""Rows in every file that holds rows, and a tokenizer that is sensitive to where a text begins."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Rows = Sequence[Mapping[str, Any]]

CHATS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "system", "content": "the queen sees all"},
            {"role": "user", "content": f"which {noun} runs ?"},
            {"role": "assistant", "content": f"the {colour} {noun} ."},
        ]
    }
    for noun in ("cat", "dog", "bird", "fish", "king", "child")
    for colour in ("red", "green", "blue")
]
TEXTS = [f"the {a} sees a {b} and the {b} runs ." for a in ("cat", "dog") for b in ("sun", "sea")]


def as_jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_json(rows: Rows) -> bytes:
    return json.dumps(list(rows), indent=1).encode()


def as_csv(rows: Rows) -> bytes:
    """Cells are text: what is not is written as JSON."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    for row in rows:
        writer.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()})
    return out.getvalue().encode()


def as_parquet(rows: Rows) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), out, row_group_size=5)
    return out.getvalue()


WRITERS: dict[str, Callable[[Rows], bytes]] = {
    ".jsonl": as_jsonl,
    ".json": as_json,
    ".csv": as_csv,
    ".parquet": as_parquet,
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": lambda content: bytes(pa.compress(content, codec="zstd", asbytes=True)),
}


def write_rows(folder: Path, rows: Rows, kind: str, packed: str = "") -> Path:
    """Write rows as one kind of file and return it."""
    file = folder / f"rows{kind}{packed}"
    file.write_bytes(PACKERS[packed](WRITERS[kind](rows)))
    return file


def byte_tokenizer() -> Any:
    """Return a byte-level BPE tokenizer with merges, trained on a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = ["the old house by the sea has a red door and a blue one", "  éàü 日本語 \n\n\t 12345"]
    tokenizer.train_from_iterator(words * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def metaspace_tokenizer() -> Any:
    """Return a tokenizer that puts a space before a text's first word, as Llama's first one did."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=120,
        special_tokens=["<unk>", "<s>", "</s>"],
        show_progress=False,
        max_token_length=12,
    )
    words = [
        word
        for word in [
            "the",
            "old",
            "house",
            "by",
            "the",
            "sea",
            "has",
            "a",
            "red",
            "door",
            "and",
            "a",
            "blue",
            "one",
        ]
    ]
    tokenizer.train_from_iterator([words, "one  two", "sea\n\nthe"] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
