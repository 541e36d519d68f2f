"""Plain text as passages: a user's file, or text that the demo model never trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from offline.tasks.items import Item
from offline.tasks.task import Task
from vllm_moe_prune.errors import PruneError

PASSAGE = 1200  # characters, about 300 tokens of English
_SHORTEST = 200  # a shorter rest is joined to the passage before
_DEMO_DOMAINS = ("maths", "stories", "science", "encyclopedia")  # the same on every machine


def read_passages(task: Task) -> list[Item]:
    """Return the passages of a ``text`` task, each about `PASSAGE` characters long.

    :raises PruneError: if the file holds no text that can be used
    """
    if task.text is None:
        return list(_demo_passages())
    items = [
        Item(f"{name}-{number}", passage)
        for name, document in read_documents(task.text).items()
        for number, passage in enumerate(passages(document))
    ]
    if not items:
        raise PruneError(f"{task.text} holds no text")
    return items


def read_documents(path: Path) -> dict[str, str]:
    """Return name -> text: a .txt file is one document, any other has one on each JSONL line.

    :raises PruneError: if the file cannot be read or is not what its name says
    """
    content = read_text(path)
    if path.suffix == ".txt":
        return {"passage": content}
    return dict(_records(path, content))


def passages(document: str) -> Iterator[str]:
    """Cut a document at ends of paragraphs, and where one is too long at ends of words."""
    parts: list[str] = []
    for piece in _pieces(document):
        if parts and len(parts[-1]) + len(piece) <= PASSAGE:
            parts[-1] += "\n\n" + piece
        else:
            parts.append(piece)
    if len(parts) > 1 and len(parts[-1]) < _SHORTEST:
        rest = parts.pop()
        parts[-1] += "\n\n" + rest
    yield from parts


def _pieces(document: str) -> Iterator[str]:
    """Yield paragraphs, the long ones in pieces of at most `PASSAGE` characters."""
    for paragraph in re.split(r"\n\s*\n", document.replace("\r\n", "\n")):
        rest = paragraph.strip()
        while len(rest) > PASSAGE:
            at = max(
                rest.rfind(" ", PASSAGE // 2, PASSAGE), rest.rfind("\n", PASSAGE // 2, PASSAGE)
            )
            at = at if at > 0 else PASSAGE
            yield rest[:at].rstrip()
            rest = rest[at:].lstrip()
        if rest:
            yield rest


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, with or without a byte-order mark.

    :raises PruneError: if it cannot be read or is no text
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PruneError(f"{path} is no text in UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise PruneError(f"cannot read {path}: {error.strerror}") from None


def _records(path: Path, content: str) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of each line of a JSONL file."""
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise PruneError(f"{path} line {number} is no JSON: {error.msg}") from None
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise PruneError(f"{path} line {number} is no object with a `text`")
        yield f"line-{number}", record["text"]


def _demo_passages() -> Iterator[Item]:
    from offline.data.domains import load_corpora

    for name, corpus in load_corpora(names=_DEMO_DOMAINS).items():
        for number, document in enumerate(corpus.heldout):
            for part, passage in enumerate(passages(document)):
                if len(passage) >= _SHORTEST:
                    yield Item(f"{name}-{number}-{part}", passage)
