"""Items of a task in three splits that never share a question; deterministic, kept as JSONL.

Order inside a split is that of a hash, so the first n items are a fair sample of any size.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from offline.data.packages import PACKAGES, cache_root, package_dir
from offline.tasks.items import Item
from offline.tasks.task import SPLITS, Source, Split, Task
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import DataIdentity, sha256_text, write_atomic
from vllm_moe_prune.reading import parse_json, read_bytes, read_text

_VERSION = 2  # raise it when the rules below change, so that old files are not used
_MOST = 1 << 40  # bytes of a text file of the user's
_SEARCH_ITEMS = 2000
_SELECTION_ITEMS = 1000
_DUPLICATE_PREFIX = 1_000_000  # document ids from here on repeat the items without the question


def load_items(task: Task, split: Split) -> list[Item]:
    """Return the items of a split in its fixed order, without those that serve as examples.

    :raises PruneError: if the data cannot be had, or if the examples leave no item
    """
    if task.lm_eval is not None:
        from offline.tasks.lm_eval_items import items_of

        return items_of(task, split)
    return _read_items(_lines(task, split))


@functools.lru_cache(maxsize=64)
def examples(task: Task) -> str:
    """Return what precedes every question: the examples with their answers, or nothing.

    :raises PruneError: as `load_items`
    """
    if not task.shots or task.lm_eval is not None:  # lm-eval writes its own into every prompt
        return ""
    _lines(task, "search")  # which says if they are too many
    shown = _read_items(_file_lines(task, "search")[-task.shots :])
    return "".join(f"{item.query} {item.answer}\n\n" for item in shown)


def _read_items(lines: Iterable[str]) -> list[Item]:
    found = [parse_json(line, "a kept item") for line in lines]
    return [
        Item(**{**fields, "choices": tuple(fields["choices"]), "answers": tuple(fields["answers"])})
        for fields in found
    ]


def _lines(task: Task, split: Split) -> list[str]:
    if split not in SPLITS:
        raise PruneError(
            f"task {task.name} has no split {split!r}", hint=f"it has {', '.join(SPLITS)}"
        )
    lines = _file_lines(task, split)
    if split != "search":
        return lines
    if task.shots >= len(lines):
        raise PruneError(
            f"task {task.name}: {task.shots} examples are too many",
            hint=f"they come from its {len(lines)} items to search with",
        )
    return lines[: len(lines) - task.shots]


def _file_lines(task: Task, split: Split) -> list[str]:
    # not splitlines(): texts hold other characters that it takes for line ends
    return read_text(split_file(task, split)).split("\n")[:-1]


def data_identity(task: Task, split: Split, limit: int | None = None) -> DataIdentity:
    """Return what names the first ``limit`` items of a split: their number and their hash.

    Of lm-eval's own tasks also which split of the data they are.
    """
    if task.lm_eval is not None:
        from offline.tasks.documents import documents

        found = documents(task.lm_eval, split)
        texts = list(found.lines())[:limit]
        return DataIdentity(
            name=task.name,
            split=f"{split} ({found.source})",
            count=len(texts),
            sha256=sha256_text("\n".join(texts)),
        )
    lines = _lines(task, split)[:limit]
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
    folder = cache_root() / "tasks" / f"{task.stem}-{_recipe(task)}"
    made = all((folder / f"{split}.jsonl").is_file() for split in SPLITS)
    if made and task.yaml is None and task.text is None:  # a user's data may have changed
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for split, items in make_splits(task).items():
        lines = (json.dumps(asdict(item), ensure_ascii=False) for item in items)
        write_atomic(folder / f"{split}.jsonl", "\n".join(lines) + "\n")
    return folder


def make_splits(task: Task) -> dict[Split, list[Item]]:
    """Cut a task's items into splits; a question that is in two stays in the later one only."""
    splits = _cut(task)
    return {**splits, "search": splits["search"][:_SEARCH_ITEMS]}


def training_items(task: Task) -> list[Item]:
    """Return all that the search split is the beginning of: what a model may be trained on.

    None of them is in the selection or the test split, by its question.

    :raises PruneError: if the data cannot be had
    """
    if task.lm_eval is not None:
        from offline.tasks.lm_eval_items import training_items_of

        return training_items_of(task)
    return _cut(task.bare)["search"]


def _cut(task: Task) -> dict[Split, list[Item]]:
    """Return the splits; that for searching with all items that are left for it."""
    pool, test = _pools(task)
    test = _ordered(test, task.stem)
    if pool:
        pool = _ordered(pool, task.stem)
    else:
        half = len(test) // 2
        test, pool = test[:half], test[half:]
    pool = _without(pool, test)
    at = min(_SELECTION_ITEMS, len(pool) // 2)
    selection = pool[:at]
    search = _without(pool[at:], selection)
    splits: dict[Split, list[Item]] = {"search": search, "selection": selection, "test": test}
    for split, items in splits.items():
        if not items:
            given = len(test) + len(pool)
            raise PruneError(
                f"task {task.name} has no items for the split {split!r}",
                hint=f"it has {given} different items, and each of the three splits needs one",
            )
    return splits


def _pools(task: Task) -> tuple[list[Item], list[Item]]:
    """Return the items to search and select with (none: take some of the others) and to test."""
    if task.kind == "text":
        from offline.tasks.texts import read_passages

        return [], read_passages(task)
    if task.yaml is not None:
        from offline.tasks.custom import read_yaml_task

        return read_yaml_task(task.yaml)
    assert task.test is not None
    return _read(task.train, task) if task.train else [], _read(task.test, task)


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
            row = parse_json(line, str(path))
            if row["idx"] == 0 and row["doc_id"] < _DUPLICATE_PREFIX:
                items.append(_item(str(row["doc_id"]), row["doc"], task))
    return items


def _item(number: str, doc: dict[str, Any], task: Task) -> Item:
    query = task.question.format(**doc)
    if task.generation is None:
        choices = tuple(choice.strip() for choice in doc["choices"])
        return Item(number, query, choices, doc["gold"])
    field = task.generation.answers
    answers = doc[field] if field else [doc["choices"][doc["gold"]]]
    return Item(number, query, answers=tuple(dict.fromkeys(a.strip() for a in answers)))


def _recipe(task: Task) -> str:
    """Return a short hash of all that decides the content of the split files."""
    own = task.yaml or task.text
    if own is not None:
        parts = [str(own.resolve()), hashlib.sha256(read_bytes(own, most=_MOST)).hexdigest()]
    elif task.kind == "text":
        parts = [package.sha256 for package in PACKAGES.values()]
    else:
        parts = [task.question, task.generation.answers or "" if task.generation else ""]
        for source in (task.train, task.test):
            parts += [PACKAGES[source.package].sha256, source.member] if source else ["-"]
    return hashlib.sha256("\0".join([str(_VERSION), *parts]).encode()).hexdigest()[:10]
