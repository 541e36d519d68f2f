"""Plain text as passages: a user's files, or text that the demo model never trained on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from offline.tasks.items import Item
from offline.tasks.task import Task
from offline.texts.files import Files
from offline.texts.forms import as_text, form_of
from offline.texts.row import Skip
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
        for name, document in _documents(task.text)
        for number, passage in enumerate(passages(document))
    ]
    if not items:
        raise PruneError(f"{task.text} holds no text")
    return items


def _documents(path: Path) -> Iterator[tuple[str, str]]:
    """Yield name and text of every row that has any; what has roles without them."""
    files = Files.of(path)
    several = len(files.paths) > 1
    for number, row in enumerate(files.rows(), start=1):
        try:
            form = form_of(row)
        except Skip:
            continue
        yield f"{number}-{row.name}" if several else row.name, as_text(form)


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


def _demo_passages() -> Iterator[Item]:
    from offline.data.domains import load_corpora

    for name, corpus in load_corpora(names=_DEMO_DOMAINS).items():
        for number, document in enumerate(corpus.heldout):
            for part, passage in enumerate(passages(document)):
                if len(passage) >= _SHORTEST:
                    yield Item(f"{name}-{number}-{part}", passage)
