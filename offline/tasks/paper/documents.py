"""The documents of EEP's tasks, made of the rows of their data sets: lm-eval's ``process_docs``.

Every document has ``golds``, its right answers. Where the paper measured a part of the validation
split, only that part of it is left: `held_out.json` has the rows of those whose numbers were
published. Training splits stay whole.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_moe_prune.reading import read_object

if TYPE_CHECKING:
    from datasets import Dataset

Row = Mapping[str, Any]

UNANSWERABLE = "impossible to answer"
# The paper's out-of-distribution subjects; a search sees the other 50.
MMLU_KEPT_OUT = frozenset(
    {
        "business_ethics",
        "electrical_engineering",
        "high_school_computer_science",
        "high_school_macroeconomics",
        "high_school_psychology",
        "miscellaneous",
        "professional_accounting",
    }
)
_MULTIRC_HELD_OUT = 500  # scores of Table 1 are multiples of 0.2; which 500 is not published


def boolq(docs: Dataset) -> Dataset:
    """Return questions whose right letter is A for yes."""
    return _held_out("boolq", docs).map(_yes_is_a)


def wic(docs: Dataset) -> Dataset:
    """Return pairs of sentences whose right letter is A where a word means the same in both."""
    return _held_out("wic", docs).map(_yes_is_a)


def multirc(docs: Dataset) -> Dataset:
    """Return answers whose right letter is A where they are true."""
    if docs.split != "train" and len(docs) > _MULTIRC_HELD_OUT:
        rows = random.Random(0).sample(range(len(docs)), _MULTIRC_HELD_OUT)
        docs = docs.select(sorted(rows))
    return docs.map(_yes_is_a)


def _yes_is_a(row: Row) -> dict[str, Any]:
    return {"golds": ["BA"[row["label"]]]}


def wsc(docs: Dataset) -> Dataset:
    """Return texts in which the two spans are marked: `* name *` and `# pronoun #`."""
    return docs.map(lambda row: {"marked": marked(row), **_yes_is_a(row)})


def marked(row: Row) -> str:
    """Return the text of a WSC row with its spans, which are counted in words, marked."""
    words = row["text"].split(" ")
    spans = {
        row[f"{span}_index"]: (row[f"{span}_text"], mark)
        for span, mark in (("span2", "#"), ("span1", "*"))
    }
    found, number = [], 0
    while number < len(words):
        text, mark = spans.get(number, (words[number], None))
        found.append(text if mark is None else f"{mark} {text} {mark}")
        number += 1 if mark is None else len(text.split(" "))
    return " ".join(found)


def rte(docs: Dataset) -> Dataset:
    """Return pairs of sentences whose right letter is A where one follows from the other."""
    return docs.map(lambda row: {"golds": ["AB"[row["label"]]]})


def cb(docs: Dataset) -> Dataset:
    """Return pairs of sentences: A contradiction (1), B entailment (0), C neutral (2)."""
    return docs.map(lambda row: {"golds": ["BAC"[row["label"]]]})


def copa(docs: Dataset) -> Dataset:
    """Return premises whose right letter is A for the first of two choices."""
    return docs.map(lambda row: {"golds": ["AB"[row["label"]]]})


def record(docs: Dataset) -> Dataset:
    """Return passages whose right answers are all names of the entity that is meant."""
    return _held_out("record", docs).map(lambda row: {"golds": list(row["answers"])})


def squad(docs: Dataset) -> Dataset:
    """Return questions with all their answers; one says so where the passage has none."""
    return _held_out("squad", docs).map(
        lambda row: {"golds": list(dict.fromkeys(row["answers"]["text"])) or [UNANSWERABLE]}
    )


def drop(docs: Dataset) -> Dataset:
    """Return the questions whose answer is a number, with all answers that were given.

    Training rows have one answer, held-out rows those of several people, of whom one at least
    gave a number.
    """
    people = _trained if docs.split == "train" else _validated
    numbers = docs.filter(lambda row: any(answer["number"] for answer in people(row)))
    return _held_out("drop", numbers).map(
        lambda row: {"golds": list(dict.fromkeys(g for a in people(row) for g in _golds(a)))}
    )


def _trained(row: Row) -> list[Row]:
    return [row["answer"]]


def _validated(row: Row) -> list[Row]:
    """Return the answers of all people; the hub has their fields as lists."""
    answers = row["validated_answers"]
    fields = (answers["number"], answers["date"], answers["spans"])
    return [
        {"number": number, "date": date, "spans": spans}
        for number, date, spans in zip(*fields, strict=True)
    ]


def _golds(answer: Row) -> list[str]:
    date = [answer["date"][part] for part in ("day", "month", "year")]
    if answer["number"]:
        return [answer["number"]]
    return [" ".join(date).strip()] if any(date) else list(answer["spans"])


def mmlu_iid(docs: Dataset) -> Dataset:
    """Return the questions of the 50 subjects that are searched on."""
    return _mmlu(docs, lambda subject: subject != "" and subject not in MMLU_KEPT_OUT)


def mmlu_ood(docs: Dataset) -> Dataset:
    """Return the questions of the 7 subjects that no search sees."""
    return _mmlu(docs, MMLU_KEPT_OUT.__contains__)


def _mmlu(docs: Dataset, wanted: Callable[[str], bool]) -> Dataset:
    return docs.filter(lambda row: wanted(row["subject"])).map(
        lambda row: {"golds": ["ABCD"[row["answer"]]]}
    )


def _held_out(name: str, docs: Dataset) -> Dataset:
    """Return the rows that the paper measured; all of a training split and of other data.

    Rows are known by their numbers, which mean nothing where a data set was shortened.
    """
    published = _published()[name]
    if docs.split == "train" or len(docs) < published["of"]:
        return docs
    return docs.select(published["rows"])


@functools.cache
def _published() -> dict[str, Any]:
    return read_object(Path(__file__).with_name("held_out.json"))
