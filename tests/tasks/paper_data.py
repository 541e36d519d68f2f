"""The data sets of EEP's tasks in small: folders as the hub has them, columns and all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset

Rows = Sequence[Mapping[str, Any]]

NO_DATE = {"day": "", "month": "", "year": ""}


def _drop(question: str, answer: Mapping[str, Any], *others: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "section_id": "nfl_1",
        "query_id": question,
        "passage": "The Eagles scored 21 points, the Lions 45.",
        "question": question,
        "answer": answer,
        # The hub has the answers of all people as lists, one for each field.
        "validated_answers": {key: [one[key] for one in others] for key in answer},
    }


def answer(number: str = "", spans: Sequence[str] = (), **date: str) -> dict[str, Any]:
    """Return one person's answer to a question of DROP."""
    return {
        "number": number,
        "date": NO_DATE | date,
        "spans": list(spans),
        "worker_id": "w",
        "hit_id": "h",
    }


def _squad(number: int, *texts: str) -> dict[str, Any]:
    return {
        "id": str(number),
        "title": "Normans",
        "context": "The Normans came from Denmark.",
        "question": f"Where from, {number}?",
        "answers": {"text": list(texts), "answer_start": [0] * len(texts)},
    }


def _mmlu(subject: str, number: int | str, answer: int = 2) -> dict[str, Any]:
    return {
        "question": f"Which, {number}?",
        "subject": subject,
        "choices": ["w", "x", "y", "z"],
        "answer": answer,
    }


# Configuration of super_glue -> a row of each label, as the hub's parquet files have them.
SUPER_GLUE: Mapping[str, Rows] = {
    "boolq": [
        {"question": "is it red", "passage": "Paint -- It is red.", "idx": 0, "label": 1},
        {"question": "is it blue", "passage": "Paint -- It is red.", "idx": 1, "label": 0},
    ],
    "wic": [
        {
            "word": "place", "sentence1": "Do you want to come to my place?",
            "sentence2": "A political system with no place for it.",
            "start1": 31, "start2": 27, "end1": 36, "end2": 32, "idx": 0, "label": 0,
        },
        {
            "word": "bane", "sentence1": "The bane of my existence.",
            "sentence2": "The bane of my life.",
            "start1": 4, "start2": 4, "end1": 8, "end2": 8, "idx": 1, "label": 1,
        },
    ],
    "wsc": [
        {
            "text": "Mark told Pete many lies about himself, which Pete included in his book.",
            "span1_index": 0, "span2_index": 11, "span1_text": "Mark", "span2_text": "his",
            "idx": 0, "label": 0,
        },
        {
            "text": "Mr. Moncrieff visited Chester , thinking that it was his own.",
            "span1_index": 0, "span2_index": 9, "span1_text": "Mr. Moncrieff",
            "span2_text": "his", "idx": 1, "label": 1,
        },
    ],
    "rte": [
        {"premise": "Cats sleep.", "hypothesis": "Cats rest.", "idx": 0, "label": 0},
        {"premise": "Cats sleep.", "hypothesis": "Dogs rest.", "idx": 1, "label": 1},
    ],
    "cb": [
        {"premise": "It rains.", "hypothesis": "it is wet", "idx": 0, "label": 0},
        {"premise": "It rains.", "hypothesis": "it is dry", "idx": 1, "label": 1},
        {"premise": "It rains.", "hypothesis": "it is May", "idx": 2, "label": 2},
    ],
    "copa": [
        {
            "premise": "The man broke his toe.", "choice1": "He got a hole in his sock.",
            "choice2": "He dropped a hammer on his foot.", "question": "cause", "idx": 0,
            "label": 1,
        },
        {
            "premise": "It rained.", "choice1": "The street was wet.",
            "choice2": "The sun fell down.", "question": "effect", "idx": 1, "label": 0,
        },
    ],
    "multirc": [
        {
            "paragraph": "<b>Sent 1: </b>Susan had a party.<br>", "question": "Who had it?",
            "answer": "Susan", "idx": {"paragraph": 0, "question": 0, "answer": 0}, "label": 1,
        },
        {
            "paragraph": "<b>Sent 1: </b>Susan had a party.<br>", "question": "Who had it?",
            "answer": "Bob", "idx": {"paragraph": 0, "question": 0, "answer": 1}, "label": 0,
        },
    ],
    "record": [
        {
            "passage": "Puerto Rico voted Sunday.\n@highlight\nIt favours statehood",
            "query": "Few expect @placeholder to become a state", "entities": ["Puerto Rico"],
            "entity_spans": {"text": ["Puerto Rico"], "start": [0], "end": [11]},
            "answers": ["Puerto Rico", "Puerto Ricans"], "idx": {"passage": 0, "query": 0},
        },
    ],
}  # fmt: skip

SQUAD: Rows = [_squad(0, "Denmark", "Denmark", "from Denmark"), _squad(1)]
DROP_TRAIN: Rows = [
    _drop("How many?", answer("24")),
    _drop("Who?", answer(spans=["Lions"])),
    _drop("When?", answer(day="3", month="May", year="1990")),
]
DROP: Rows = [
    _drop("How many?", answer("24"), answer("24"), answer(spans=["24 points"])),
    _drop("Who?", answer(spans=["Lions"]), answer(spans=["Lions"])),
    _drop("Which day?", answer("3"), answer("3"), answer(day="3", month="May")),
]
MMLU: Rows = [
    _mmlu("anatomy", 0),
    _mmlu("high_school_us_history", 1, answer=0),
    _mmlu("business_ethics", 2, answer=3),
]


def write_hub(folder: Path, *, questions: int = 0) -> None:
    """Write all data sets below ``folder``, which names them as one would on the hub.

    :param questions: of BoolQ, and of two subjects of MMLU, in each split, no two the same; a few
        rows that splits share if not given, as of all others
    """
    splits = ("train", "validation")
    glue = {config: dict.fromkeys(splits, rows) for config, rows in SUPER_GLUE.items()}
    mmlu = dict.fromkeys(("auxiliary_train", "test", "validation", "dev"), MMLU)
    mmlu["auxiliary_train"] = [{**row, "subject": ""} for row in MMLU]
    if questions:
        glue["boolq"] = {split: _boolq(split, questions) for split in glue["boolq"]}
        mmlu = {split: _two_subjects(split, questions) for split in mmlu}
    _write(folder / "aps/super_glue", glue)
    _write(folder / "rajpurkar/squad_v2", {"squad_v2": dict.fromkeys(splits, SQUAD)})
    _write(folder / "EleutherAI/drop", {"default": {"train": DROP_TRAIN, "validation": DROP}})
    _write(folder / "cais/mmlu", {"all": mmlu})


def _boolq(split: str, count: int) -> Rows:
    return [
        {"question": f"is {split} {n} red", "passage": "It is red.", "idx": n, "label": n % 2}
        for n in range(count)
    ]


def _two_subjects(split: str, count: int) -> Rows:
    subjects = ("anatomy", "business_ethics")
    return [_mmlu(name, f"{split} {n}", n % 4) for name in subjects for n in range(count)]


def _write(folder: Path, configs: Mapping[str, Mapping[str, Rows]]) -> None:
    """Write a data set: its card, and a parquet file for each split of each configuration."""
    named = []
    for config, splits in configs.items():
        every = [dict(row) for rows in splits.values() for row in rows]
        features = Dataset.from_list(every).features
        for split, rows in splits.items():
            made = Dataset.from_list([dict(row) for row in rows], features=features)
            (folder / config).mkdir(parents=True, exist_ok=True)
            made.to_parquet(folder / config / f"{split}-00000-of-00001.parquet")
        files = [{"split": split, "path": f"{config}/{split}-*"} for split in splits]
        named.append({"config_name": config, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': named})}---\n")
