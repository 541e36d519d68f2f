from __future__ import annotations

import json
from pathlib import Path

import pytest

from offline.tasks.catalog import SPLITS, get_task
from offline.tasks.harness import run, texts_of
from offline.tasks.splits import data_identity, load_items
from offline.tasks.texts import PASSAGE, passages
from tests.texts.samples import write_rows
from vllm_moe_prune.errors import PruneError

PARAGRAPH = "The old house by the sea has a red door and a blue one. " * 8


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMPRUNE_CACHE", str(tmp_path / "cache"))


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return f"text:{path}"


def test_passages_end_where_paragraphs_do_and_lose_nothing() -> None:
    document = "\n\n".join(f"{n} {PARAGRAPH}".strip() for n in range(40))
    found = list(passages(document))
    assert "\n\n".join(found) == document
    assert len(found) > 10
    assert all(PASSAGE // 3 < len(passage) <= PASSAGE for passage in found[:-1])


def test_a_long_paragraph_is_cut_between_words() -> None:
    document = PARAGRAPH.strip() * 10
    found = list(passages(document))
    assert " ".join("\n\n".join(found).split()) == " ".join(document.split())
    assert all(len(passage) <= PASSAGE + 202 for passage in found)


def test_text_file_becomes_three_splits(tmp_path: Path) -> None:
    text = "\n\n".join(f"Chapter {n}. {PARAGRAPH}" for n in range(100))
    task = get_task(write(tmp_path / "book.txt", text))
    assert (task.name, task.kind, task.title) == ("book", "text", "book (agreement)")
    splits = {split: texts_of(task, split) for split in SPLITS}
    assert [len(found) for found in splits.values()] == [13, 12, 25]
    everything = [text for found in splits.values() for _, text in found]
    assert len(set(everything)) == 50
    assert texts_of(task, "test", 5, 2) == splits["test"][2:5]
    assert data_identity(task, "test", 5).count == 5


@pytest.mark.parametrize(("kind", "packed"), [(".csv", ""), (".json", ".gz"), (".parquet", "")])
def test_other_files_have_the_passages_of_jsonl(kind: str, packed: str, tmp_path: Path) -> None:
    rows = [{"text": f"w{n} {PARAGRAPH[:300]}"} for n in range(8)]
    found = []
    for file in (write_rows(tmp_path, rows, ".jsonl"), write_rows(tmp_path, rows, kind, packed)):
        task = get_task(f"text:{file}")
        assert task.name == "rows"
        found.append(sorted(text for split in SPLITS for _, text in texts_of(task, split)))
    assert found[0] == found[1]
    assert len(found[0]) == 8


def test_jsonl_file_gives_a_passage_of_each_line(tmp_path: Path) -> None:
    # U+2028 is no end of a line here
    lines = [
        json.dumps({"text": f"w{n}\u2028{PARAGRAPH[:300]}"}, ensure_ascii=False) for n in range(8)
    ]
    task = get_task(write(tmp_path / "chat.jsonl", "\n".join(lines) + "\n\n"))
    items = [item for split in SPLITS for item in load_items(task, split)]
    assert sorted(item.id for item in items) == [f"line-{n}-0" for n in range(1, 9)]
    assert all("\u2028" in item.query for item in items)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.txt", "", "holds no text"),
        ("a.txt", "Only one passage.", r"no items for the split .*it has 1 different items"),
        ("a.txt", b"\xff\xfe\xfa", "is no text in UTF-8"),
        ("a.jsonl", "\n\n", "holds no text"),
        ("a.jsonl", '{"text": "x"}\n{"txt": "x"}\n', "line 2 has no text: its columns are txt"),
        ("a.jsonl", "\n{text", "line 2 is not JSON"),
    ],
)
def test_text_that_cannot_be_used_is_refused(
    tmp_path: Path, name: str, content: str | bytes, complaint: str
) -> None:
    task = get_task(write(tmp_path / name, content))
    with pytest.raises(PruneError, match=complaint):
        texts_of(task, "test")


def test_absent_or_unknown_text_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match=r"no text file at nowhere/a\.txt"):
        get_task("text:nowhere/a.txt")
    with pytest.raises(PruneError, match=r"name it by what it holds: \.txt"):
        get_task(write(tmp_path / "a.pdf", "x"))


def test_text_cannot_be_scored(tmp_path: Path) -> None:
    task = get_task(write(tmp_path / "a.txt", PARAGRAPH * 20))
    with pytest.raises(PruneError, match=r"a is plain text.*agreement"):
        run(None, task, "test")  # type: ignore[arg-type]
