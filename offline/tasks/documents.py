"""Which documents of a data set a task of lm-evaluation-harness searches, selects and tests with.

Search and selection come from the training split, else from the validation split, of those that
lm-eval does not ask; the held-out documents are those that it asks. Where the data have a single
split it is cut: half is held out. No two share a question, and no prompt of a search shows the
answer to its own.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from offline.tasks.definition import Definition
from offline.tasks.items import Item
from offline.tasks.loading import load, seeded, templates_kept
from offline.tasks.quiet import quiet_libraries
from vllm_moe_prune.errors import PruneError

SEARCH_ITEMS = 2000
SELECTION_ITEMS = 1000
_UNNAMED = ("train", "validation")


@dataclass(frozen=True, slots=True)
class Documents:
    """Some documents in the order in which they are asked.

    ``source`` is the split of the data that they come from; ``rows`` are their numbers there.
    ``apart`` says that examples may be drawn from the same split: a document is then not shown
    with its own prompt.
    """

    docs: tuple[Any, ...]
    rows: tuple[int, ...]
    source: str
    apart: bool

    @property
    def names(self) -> list[str]:
        """Return what each document is called in results."""
        split = self.source.rpartition(" of ")[2]
        return [f"{split}-{row}" for row in self.rows]

    def lines(self) -> Iterator[str]:
        """Yield every document's content as JSON: what names it wherever the data lie."""
        for doc in self.docs:
            yield json.dumps(doc, sort_keys=True, default=str, ensure_ascii=False)


@functools.lru_cache(maxsize=64)
def whole(definition: Definition) -> Documents:
    """Return all documents that lm-eval asks, in its order.

    :raises PruneError: if the data cannot be had
    """
    with _reading(definition):
        task = load(definition)
        docs = tuple(task.eval_docs)
    return Documents(docs, tuple(range(len(docs))), _asked_split(task), apart=False)


@functools.lru_cache(maxsize=64)
def documents(definition: Definition, split: str) -> Documents:
    """Return the documents of a split: ``all`` is what lm-eval asks, as `whole`.

    :raises PruneError: if the data cannot be had, or leave nothing for the split
    """
    if split == "all":
        return whole(definition)
    if split == "test":
        test, source = _test(definition)
        found = _gathered(test, source, apart=is_cut(definition))
    else:
        found = _decided_on(definition)[split]
    if not found.docs:
        raise PruneError(
            f"task {definition.name} has no items for the split {split!r}",
            hint=f"the split {found.source} of its data has too few different questions",
        )
    return found


def training_documents(definition: Definition) -> Documents:
    """Return all documents that are in neither the selection nor the test split.

    :raises PruneError: as `documents`
    """
    selected = set(documents(definition, "selection").rows)
    pool, source = _pool(definition, None)
    return _gathered([pair for pair in pool if pair[0] not in selected], source)


def is_cut(definition: Definition) -> bool:
    """Return whether the data have a single split, of which only a half is held out."""
    return _pool_of(load(definition)) is None


def question(task: Any, doc: Any) -> str:
    """Return what a document asks, without examples and description: its content's key."""
    asked = task.doc_to_text(doc)
    if isinstance(asked, int):  # the choices are the questions (winogrande)
        return " ".join([*map(str, task.doc_to_choice(doc)), str(task.doc_to_target(doc))])
    if task.OUTPUT_TYPE in ("loglikelihood", "loglikelihood_rolling"):
        return f"{asked} {task.doc_to_target(doc)}"
    return str(asked)


def _key(definition: Definition, doc: Any) -> str:
    return Item("", question(load(definition), doc)).key


@functools.lru_cache(maxsize=16)
def _decided_on(definition: Definition) -> dict[str, Documents]:
    pool, source = _pool(definition, SEARCH_ITEMS + SELECTION_ITEMS)
    at = min(SELECTION_ITEMS, len(pool) // 2)
    return {"search": _gathered(pool[at:], source), "selection": _gathered(pool[:at], source)}


@functools.lru_cache(maxsize=16)
def _test(definition: Definition) -> tuple[list[tuple[int, Any]], str]:
    """Return the held-out documents with their numbers, in lm-eval's order, and their split."""
    everything = whole(definition)
    numbered = list(zip(everything.rows, everything.docs, strict=True))
    if not is_cut(definition):
        return numbered, everything.source
    ordered = sorted(everything.rows, key=lambda row: _place(definition, row))
    held_out = set(ordered[: len(ordered) // 2])
    return [pair for pair in numbered if pair[0] in held_out], f"half of {everything.source}"


@functools.lru_cache(maxsize=16)
def _pool(definition: Definition, most: int | None) -> tuple[list[tuple[int, Any]], str]:
    """Return what may be searched and selected with, in an order as if shuffled.

    Of the documents with the same question one stays, and none whose question is held out or is
    an example that every prompt shows. No more than ``most`` are read: training splits are long.
    """
    with _reading(definition):
        task = load(definition)
        test, test_source = _test(definition)
        taken = {_key(definition, doc) for _, doc in test} | _shown(definition, task)
        source, read = _pool_of(task) or (test_source, lambda: whole(definition).docs)
        docs = read()
        found: list[tuple[int, Any]] = []
        for row in sorted(range(len(docs)), key=lambda row: _place(definition, row)):
            if most is not None and len(found) >= most:
                break
            key = _key(definition, doc := docs[row])
            if key not in taken:
                taken.add(key)
                found.append((row, doc))
    return found, source


def _shown(definition: Definition, task: Any) -> set[str]:
    """Return the questions of a fixed list of examples, which are the same in every prompt."""
    settings = getattr(task, "fewshot_cfg", None)
    if not definition.shots or settings is None:
        return set()
    if settings.samples is None and settings.sampler != "first_n":
        return set()
    return {
        Item("", str(_asked(task, doc))).key
        for doc in task.sampler.fewshot_docs()[: definition.shots]
    }


def _asked(task: Any, doc: Any) -> Any:
    return task.doc_to_text(doc, task.fewshot_cfg.doc_to_text)


def _pool_of(task: Any) -> tuple[str, Callable[[], Sequence[Any]]] | None:
    """Return the split to search with and what reads it; None if all there are serve as test.

    A split that the data have and the task's file does not name will do, if it is of one form.
    """
    config, asked = task.config, _asked_split(task)
    if task.has_training_docs() and (config.training_split or "train") != asked:
        return config.training_split or "train", task.training_docs
    validation = config.validation_split or "validation"
    if task.has_test_docs() and task.has_validation_docs() and validation != asked:
        return validation, task.validation_docs
    dataset = getattr(task, "dataset", None)
    if not isinstance(dataset, Mapping) or asked not in dataset:
        return None
    for name in _UNNAMED:
        split = dataset.get(name)
        if split is None or name in (asked, config.fewshot_split):
            continue
        if split.column_names == dataset[asked].column_names:
            process = config.process_docs or (lambda split: split)
            return name, functools.partial(process, split)
    return None


def _asked_split(task: Any) -> str:
    """Return the data's name for the split that lm-eval asks."""
    if task.has_test_docs():
        return task.config.test_split or "test"
    return task.config.validation_split or "validation"


def _place(definition: Definition, row: int) -> bytes:
    return hashlib.sha256(f"{definition.task}\0{row}".encode()).digest()


@contextmanager
def _reading(definition: Definition) -> Iterator[None]:
    """Say which task it was whose documents cannot be read: their code is the task's own."""
    try:
        with quiet_libraries(), seeded(), templates_kept():
            yield
    except PruneError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        raise PruneError(
            f"task {definition.name}: its data cannot be read: {type(error).__name__}: {said[:300]}"
        ) from error


def _gathered(pairs: Sequence[tuple[int, Any]], source: str, apart: bool = True) -> Documents:
    return Documents(tuple(doc for _, doc in pairs), tuple(row for row, _ in pairs), source, apart)
