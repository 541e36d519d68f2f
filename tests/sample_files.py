"""A task and a text for the tiny models, as a user would write them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_NOUNS = ("cat", "dog", "bird", "fish", "tree", "sun", "moon", "star", "king", "queen", "child")


def write_text(file: Path, seed: int = 0) -> Path:
    """Write a few hundred sentences of words that the tiny tokenizer knows."""
    rng = random.Random(seed)
    sentences = [f"the {rng.choice(_NOUNS)} sees a {rng.choice(_NOUNS)} ." for _ in range(400)]
    file.write_text("\n\n".join(sentences))
    return file


_HEAD = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/data.jsonl}}}}
test_split: test
"""
_CHOICE = """\
output_type: multiple_choice
doc_to_text: "which {{noun}} is {{place}} ? the"
doc_to_choice: ["red", "green", "blue", "old"]
doc_to_target: "{{right}}"
"""


def write_docs(folder: Path, docs: Iterable[dict[str, Any]]) -> None:
    """Write the items that the task files of a folder read."""
    (folder / "data.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))


def write_task_file(folder: Path, name: str, fields: str) -> Path:
    """Write a user's task as an lm-eval YAML file over what `write_docs` writes: no download.

    :param fields: all but the task's name and its data
    """
    file = folder / f"{name}.yaml"
    file.write_text(_HEAD.format(name=name, folder=folder) + fields)
    return file


def write_task(folder: Path) -> Path:
    """Write a user's task of 60 items."""
    nouns = ("cat", "dog", "bird", "fish", "tree", "sun", "moon", "king", "queen", "child")
    places = ("here", "big", "small", "good", "new", "one")
    docs = [
        {"noun": noun, "place": place, "right": (len(noun) + len(place)) % 4}
        for noun in nouns
        for place in places
    ]
    write_docs(folder, docs)
    return write_task_file(folder, "colours", _CHOICE)


#: Names of modules that a user may have, too.
OWN_NAMES = ("serve", "offline", "loadtest", "vllm_moe_prune", "torch", "transformers", "vllm")


def write_modules(folder: Path, names: Sequence[str] = OWN_NAMES) -> Path:
    """Write modules that end whoever imports them in place of ours."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.py").write_text(f"raise SystemExit('imported the user's {name}.py')\n")
    return folder
