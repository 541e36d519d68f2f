"""The test-bed's tasks as lm-eval YAML files with their data, and its held-out text.

``tasks/NAME.train.jsonl`` is the pool for search and selection, ``tasks/NAME.test.jsonl`` is for
the last measurement; the model was trained on neither. The data is the same on every machine,
but for passages of code, which come from the Python and PyTorch that are installed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.testbed import passages, puzzles
from benchmarks.testbed.text import Corpus, load_corpora

TEMPLATES = Path(__file__).parent / "tasks"
TASKS = ("arithmetic", "pattern", "lookup", "classify")
GENERATED = ("arithmetic_gen", "lookup_gen")  # the same questions, answered in writing
_POOL_ITEMS, _TEST_ITEMS = 1600, 1200


def write_tasks(folder: Path, final: Path) -> None:
    """Write ``folder/tasks`` and ``folder/text``; the YAML files name their data under ``final``.

    lm-eval reads data paths relative to the working directory, so they are absolute.
    """
    corpora = load_corpora()
    (folder / "tasks").mkdir()
    (folder / "text").mkdir()
    for name in TASKS:
        for split, items in task_items(name, corpora).items():
            _write_jsonl(folder / "tasks" / f"{name}.{split}.jsonl", map(_row, items))
    for template in sorted(TEMPLATES.glob("*.yaml")):
        text = template.read_text(encoding="utf-8").split("\n", 1)[1]  # without the remark
        text = text.replace("DATA/", f"{final.resolve() / 'tasks'}/")
        (folder / "tasks" / template.name).write_text(text, encoding="utf-8")
    for domain, corpus in corpora.items():
        rows = ({"text": text} for text in corpus.heldout)
        _write_jsonl(folder / "text" / f"{domain}.jsonl", rows)


def task_items(name: str, corpora: Mapping[str, Corpus]) -> dict[str, list[puzzles.Puzzle]]:
    """Return the items of a task: ``train``, the pool, and ``test``."""
    if name == "classify":
        pool = passages.distinct(dict(corpora), "pool", _POOL_ITEMS)
        return {"train": pool, "test": passages.distinct(dict(corpora), "test", _TEST_ITEMS)}
    pool = puzzles.distinct(name, "pool", _POOL_ITEMS)
    return {"train": pool, "test": puzzles.distinct(name, "test", _TEST_ITEMS)}


def _row(puzzle: puzzles.Puzzle) -> dict[str, object]:
    return {
        "question": puzzle.prompt,
        "choices": puzzle.choices,
        "gold": puzzle.choices.index(puzzle.answer),
        "answer": puzzle.answer,
    }


def _write_jsonl(path: Path, rows: Iterable[dict[str, object]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
