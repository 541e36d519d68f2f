"""The folder of a comparison: what it may be written over, and what its files are called."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from loadtest.results import PAGE_MARK, PAGE_TITLE
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import read_json

_ROUND_FILES = re.compile(
    r"\d+-[\w.-]+(/(server\.log|answers\.jsonl|users-\d+(\.\d+)?\.(jsonl|parquet(\.jsonl)?|log"
    r"|client\.json|server\.jsonl|vllm-bench\.(json|log))))?"
)


def check_place(out: Path) -> None:
    """Refuse a folder in which a comparison would write over what none has written.

    :raises PruneError: naming the file
    """
    for foreign in _foreign(out):
        raise PruneError(
            f"{foreign} was not written by a comparison and is not replaced",
            hint="choose another --out, or move it away",
        )


def _foreign(out: Path) -> Iterator[Path]:
    page, result, rounds = out / "compare.md", out / "compare.json", out / "rounds"
    if result.exists() and not _is_result(result):
        yield result
    if page.exists() and not page.read_bytes().startswith(PAGE_TITLE.encode()):
        yield page
    drawn = out / "loadtest.html"
    if drawn.exists() and PAGE_MARK not in drawn.read_bytes()[:400]:
        yield drawn
    if rounds.exists() and not rounds.is_dir():
        yield rounds
    for file in sorted(rounds.rglob("*")):
        if not _ROUND_FILES.fullmatch(file.relative_to(rounds).as_posix()):
            yield file


def _is_result(file: Path) -> bool:
    try:
        fields = read_json(file)
    except PruneError:
        return False
    return isinstance(fields, dict) and {"lifetimes", "ratios", "settings"} <= fields.keys()
